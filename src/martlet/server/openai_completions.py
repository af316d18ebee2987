"""``POST /v1/completions``: going on with a text, or filling the gap before a suffix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.types import ASGIApp

from martlet.server.answers import Tally, Written, finite_logprob, new_id
from martlet.server.exchange import Exchange
from martlet.server.failures import ApiError
from martlet.server.fields import Flag
from martlet.server.messages import Event, JobSpec, TokenDetails
from martlet.server.openai_words import GenerationFields, fingerprint, job_spec, limited
from martlet.server.service import Service
from martlet.server.settings import ServerSettings
from martlet.server.wire import SSE

__all__ = [
    "MAX_PROMPTS",
    "CompletionAnswer",
    "CompletionRequest",
    "completion_jobs",
    "create_completion",
]

MAX_PROMPTS = 16
"""Prompts of one request."""

_USUAL_TOKENS = 16  # OpenAI's default for this endpoint
_TokenId = Annotated[int, Field(ge=0, le=(1 << 31) - 1)]
_TokenIds = Annotated[list[_TokenId], Field(min_length=1)]
Prompt = (
    str
    | _TokenIds
    | Annotated[list[str], Field(min_length=1)]
    | Annotated[list[_TokenIds], Field(min_length=1)]
)


class CompletionRequest(GenerationFields):
    """The body of a request for a completion."""

    prompt: Prompt
    suffix: str | None = None
    echo: Flag = None
    best_of: Annotated[int, Field(ge=1, le=(1 << 31) - 1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return [*self.prompt]

    @property
    def num_written(self) -> int:
        """Texts that are written for each prompt."""
        return max(self.n or 1, self.best_of or 1)

    def check_completion(self, settings: ServerSettings) -> None:
        """What depends on more than one field, or on the server.

        Raises:
            ApiError: 400.
        """
        self.check(settings, self.num_written, "best_of" if self.best_of else "n")
        if len(self.prompts) > MAX_PROMPTS:
            raise _bad(
                "prompt", f"prompt has {len(self.prompts)} texts; the limit is {MAX_PROMPTS}"
            )
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise _bad("best_of", f"best_of is {self.best_of}, fewer than n, which is {self.n}")
        if self.stream and self.num_written > (self.n or 1):
            raise _bad("best_of", "the best of several texts is known at their end: not streamed")
        has_ids = not all(isinstance(prompt, str) for prompt in self.prompts)
        if has_ids and (self.echo or self.suffix is not None):
            raise _bad("prompt", "echo and suffix need a prompt that is text, not token ids")
        if self.echo and self.logprobs is not None:
            raise _bad("echo", "echo with logprobs is not supported: prompts are not scored")


def _bad(param: str, message: str) -> ApiError:
    return ApiError(400, "invalid_value", message, param)


def completion_jobs(body: CompletionRequest, settings: ServerSettings) -> list[JobSpec]:
    """What the model is sent for a request: one job for each prompt."""
    top_logprobs = body.logprobs
    if top_logprobs is None and body.num_written > (body.n or 1):
        top_logprobs = 0  # the best is known by its log-probabilities
    params = limited(body.sampling(), settings, _USUAL_TOKENS, is_fixed=True)
    jobs = []
    for prompt in body.prompts:
        if body.suffix is not None and isinstance(prompt, str):
            jobs.append(
                job_spec(
                    {"kind": "fill", "pieces": [prompt, body.suffix]},
                    params,
                    body.num_written,
                    top_logprobs,
                )
            )
        else:
            jobs.append(
                job_spec(
                    {"kind": "complete", "prompt": prompt}, params, body.num_written, top_logprobs
                )
            )
    return jobs


class CompletionAnswer:
    """A completion, or the chunks of one."""

    def __init__(self, body: CompletionRequest, answer_id: str, system_fingerprint: str) -> None:
        self.tally = Tally()
        self._body = body
        self._num_choices = body.n or 1
        self._head = {
            "id": answer_id,
            "object": "text_completion",
            "created": self.tally.created,
            "model": body.model,
            "system_fingerprint": system_fingerprint,
        }

    def add(self, job: int, event: Event) -> Sequence[dict[str, Any]]:
        """Chunks: the prompt where it is echoed, the text, then why it ended."""
        offset = (
            len(self.tally.choices[key].text)
            if (key := _key(job, event)) in (self.tally.choices)
            else 0
        )
        choice = self.tally.add(job, event)
        text, tokens = event.get("text", ""), event.get("tokens", [])
        chunks = []
        if event["event"] == "started" and self._body.echo:
            chunks.append(self._chunk(key, self._echoed(job)))
        if text or tokens:
            chunks.append(self._chunk(key, text, logprobs=self._logprobs(tokens, offset)))
        if event["event"] == "finished":
            chunks.append(self._chunk(key, "", choice.finish_reason))
        return chunks

    def end(self) -> Sequence[dict[str, Any]]:
        """The chunk with the count of tokens, where it was asked for."""
        if not self._body.wants_usage:
            return ()
        usage = {"choices": [], "usage": self.tally.usage(), "timings": self.tally.timings()}
        return [{**self._head, **usage}]

    def whole(self) -> dict[str, Any]:
        """The completion."""
        choices: list[dict[str, Any]] = []
        for job in range(len(self._body.prompts)):
            for choice in self._best(job):
                choices.append(
                    {
                        "index": len(choices),
                        "text": self._echoed(job) + choice.text,
                        "logprobs": self._logprobs(choice.tokens, 0),
                        "finish_reason": choice.finish_reason,
                    }
                )
        return {
            **self._head,
            "choices": choices,
            "usage": self.tally.usage(),
            "timings": self.tally.timings(),
        }

    def _best(self, job: int) -> list[Written]:
        keys = [key for key in sorted(self.tally.choices) if key[0] == job]
        written = [self.tally.choices[key] for key in keys]
        if len(written) > self._num_choices:
            written.sort(key=lambda choice: -choice.mean_logprob)
        return written[: self._num_choices]

    def _echoed(self, job: int) -> str:
        prompt = self._body.prompts[job]
        return prompt if self._body.echo and isinstance(prompt, str) else ""

    def _logprobs(self, tokens: list[TokenDetails], offset: int) -> dict[str, Any] | None:
        if self._body.logprobs is None or not tokens:
            return None
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token["text"])
        return {
            "tokens": [token["text"] for token in tokens],
            "token_logprobs": [finite_logprob(token["logprob"]) for token in tokens],
            "top_logprobs": [
                {top["text"]: finite_logprob(top["logprob"]) for top in token.get("top", ())}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _chunk(
        self,
        key: tuple[int, int],
        text: str,
        reason: str | None = None,
        logprobs: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": key[0] * self._num_choices + key[1],
            "text": text,
            "logprobs": logprobs,
            "finish_reason": reason,
        }
        chunk = {**self._head, "choices": [choice]}
        return {**chunk, "usage": None} if self._body.wants_usage else chunk


def _key(job: int, event: Event) -> tuple[int, int]:
    return job, event.get("choice", 0)


async def create_completion(service: Service, request: Request) -> ASGIApp:
    """Go on with a text, or write what stands between it and a suffix."""
    body = await service.read(request, CompletionRequest)
    body.check_completion(service.settings)
    model = service.find(body.model, "fill" if body.suffix is not None else "write")
    answer_id = new_id("cmpl", request.state.request_id)
    return Exchange(
        service,
        model,
        completion_jobs(body, service.settings),
        service.client(request, body.queue_user),
        CompletionAnswer(body, answer_id, fingerprint(model)),
        SSE if body.stream else None,
    )
