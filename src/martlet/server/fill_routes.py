"""``POST /v1/fill``: all blanks of a text at once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

from pydantic import Field
from starlette.requests import Request
from starlette.types import ASGIApp

from martlet.engine.blank_marks import BLANK_MARKS, split_at_blanks
from martlet.errors import UsageError
from martlet.server.answers import Tally, Written, finite_logprob, new_id
from martlet.server.exchange import Exchange
from martlet.server.failures import ApiError
from martlet.server.fields import Flag, SamplingFields, User
from martlet.server.messages import Event, JobSpec
from martlet.server.openai_words import chat_logprobs, job_spec, limited
from martlet.server.service import Service
from martlet.server.settings import ServerSettings
from martlet.server.wire import SSE

__all__ = ["MAX_BLANKS", "FillAnswer", "FillRequest", "create_fill", "fill_job"]

MAX_BLANKS = 32
"""Blanks of one text."""

_USUAL_TOKENS_PER_BLANK = 32  # what the engine gives each where nothing else is said


class FillRequest(SamplingFields):
    """A text with blanks, or the pieces around them."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"n": (1,)}

    model: str
    text: str | None = None
    pieces: Annotated[list[str], Field(min_length=2)] | None = None
    alternatives: Annotated[int, Field(ge=0, le=8)] | None = None
    logprobs: Flag = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    stream: Flag = None
    user: User | None = None

    def parts(self) -> list[str]:
        """The pieces of the text around its blanks.

        Raises:
            ApiError: 400; there is no text or two, no blank or too many.
        """
        if (self.text is None) == (self.pieces is None):
            code = "missing_required_parameter" if self.text is None else "invalid_value"
            raise ApiError(400, code, "give the text once, as text or as pieces", "text")
        if self.pieces is not None:
            parts, param = self.pieces, "pieces"
        else:
            parts, param = _split(self.text or ""), "text"
        num_blanks = len(parts) - 1
        if num_blanks > MAX_BLANKS:
            raise ApiError(
                400,
                "too_many_blanks",
                f"the text has {num_blanks} blanks; the limit is {MAX_BLANKS}; split the text",
                param,
            )
        return parts


def _split(text: str) -> list[str]:
    try:
        return split_at_blanks(text)
    except UsageError:
        raise ApiError(
            400,
            "no_blank",
            f"the text has no blank; write {BLANK_MARKS} where words are missing",
            "text",
        ) from None


def fill_job(body: FillRequest, settings: ServerSettings) -> JobSpec:
    """What the model is sent; the first choice is the answer, the others its alternatives.

    Raises:
        ApiError: 400.
    """
    if body.top_logprobs is not None and not body.logprobs:
        raise ApiError(
            400, "invalid_value", "top_logprobs needs logprobs to be true", "top_logprobs"
        )
    parts = body.parts()
    usual = _USUAL_TOKENS_PER_BLANK * (len(parts) - 1)
    return job_spec(
        {"kind": "fill", "pieces": parts},
        limited(body.sampling(), settings, usual),
        1 + (body.alternatives or 0),
        (body.top_logprobs or 0) if body.logprobs else None,
    )


class FillAnswer:
    """A filled text, or the chunks of one."""

    def __init__(self, body: FillRequest, answer_id: str) -> None:
        self.tally = Tally()
        self._body = body
        self._id = answer_id

    def add(self, job: int, event: Event) -> Sequence[dict[str, Any]]:
        """Chunks of the answer; alternatives are told at the end alone."""
        self.tally.add(job, event)
        if event.get("choice", 0) != 0 or "blank" not in event:
            return ()
        if not event.get("text"):
            return ()
        return [{"object": "fill.chunk", "blank": event["blank"], "text": event["text"]}]

    def end(self) -> Sequence[dict[str, Any]]:
        """The whole answer, behind its chunks."""
        return [self.whole()]

    def whole(self) -> dict[str, Any]:
        """The filled text with what is known of each blank."""
        answer, *others = self.tally.in_order()
        return {
            "id": self._id,
            "object": "fill",
            "created": self.tally.created,
            "model": self._body.model,
            "text": answer.fill["text"],
            "blanks": [self._blank(blank, others) for blank in answer.fill["blanks"]],
            "usage": self.tally.usage(),
            "finish_reason": answer.finish_reason,
            "timings": self.tally.timings(),
        }

    def _blank(self, blank: Mapping[str, Any], others: Sequence[Written]) -> dict[str, Any]:
        logprob = finite_logprob(blank["logprob"])
        words = {name: blank[name] for name in ("index", "text", "start", "end", "closed")}
        words |= {"logprob": logprob, "probability": math.exp(logprob)}
        if self._body.logprobs:
            words["tokens"] = chat_logprobs(blank["tokens"])["content"]
        if self._body.alternatives:
            words["alternatives"] = _alternatives(blank, others)
        return words


def _alternatives(blank: Mapping[str, Any], others: Sequence[Written]) -> list[dict[str, Any]]:
    """What else stood in a blank: each text once, the most probable first."""
    best: dict[str, float] = {}
    for other in others:
        found = other.fill["blanks"][blank["index"]]
        if found["text"] != blank["text"]:
            logprob = finite_logprob(found["logprob"])
            best[found["text"]] = max(logprob, best.get(found["text"], -math.inf))
    return [
        {"text": text, "probability": math.exp(logprob)}
        for text, logprob in sorted(best.items(), key=lambda item: -item[1])
    ]


async def create_fill(service: Service, request: Request) -> ASGIApp:
    """Fill all blanks of a text."""
    body = await service.read(request, FillRequest)
    spec = fill_job(body, service.settings)
    model = service.find(body.model, "fill")
    return Exchange(
        service,
        model,
        [spec],
        service.client(request, body.user),
        FillAnswer(body, new_id("fill", request.state.request_id)),
        SSE if body.stream else None,
    )
