"""What OpenAI's chat and completion APIs have in common: schemas and wording."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from martlet import __version__
from martlet.server.answers import finite_logprob
from martlet.server.backend import ServedModel
from martlet.server.failures import ApiError
from martlet.server.fields import Flag, SamplingFields, StreamOptions, User
from martlet.server.messages import JobSpec, Task, TokenDetails
from martlet.server.settings import ServerSettings

__all__ = [
    "USUAL_TOKENS",
    "GenerationFields",
    "chat_logprobs",
    "fingerprint",
    "job_spec",
    "limited",
    "reply_tokens",
    "token_words",
]

USUAL_TOKENS = 128
"""What models write where neither request nor model folder says how much."""


class GenerationFields(SamplingFields):
    """Fields of every request that is answered with choices."""

    no_effect: ClassVar[frozenset[str]] = frozenset(
        {"metadata", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention"}
    )
    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "logit_bias": ({},),
        "service_tier": ("auto", "default"),
        "store": (False,),
    }

    model: str
    n: Annotated[int, Field(ge=1, le=(1 << 31) - 1)] | None = None
    stream: Flag = None
    stream_options: StreamOptions | None = None
    user: User | None = None
    safety_identifier: User | None = None

    @property
    def queue_user(self) -> str | None:
        """Whom of the key's users the fair queue counts this for."""
        return self.safety_identifier or self.user

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with the count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def check(self, settings: ServerSettings, num_choices: int, name: str = "n") -> None:
        """What depends on more than one field, or on the server.

        Raises:
            ApiError: 400.
        """
        if num_choices > settings.max_choices:
            raise ApiError(
                400,
                "invalid_value",
                f"{name} is {num_choices}; this server writes at most "
                f"{settings.max_choices} texts for a request",
                name,
            )
        if self.stream_options is not None and not self.stream:
            raise ApiError(
                400, "invalid_value", "stream_options needs stream to be true", "stream_options"
            )


def limited(
    params: dict[str, Any], settings: ServerSettings, usual: int, *, is_fixed: bool = False
) -> dict[str, Any]:
    """Sampling parameters within the server's limit on tokens.

    Where max_tokens was not given, the model takes its own default, about ``usual``; that is set
    here only if the server has a limit, or if the interface says so (``is_fixed``).

    Raises:
        ApiError: 400; more was asked for than the server allows.
    """
    limit, given = settings.max_tokens, params.get("max_tokens")
    if given is None:
        if limit is None and not is_fixed:
            return params
        return {**params, "max_tokens": usual if limit is None else min(usual, limit)}
    if limit is not None and given > limit:
        message = f"max_tokens is {given}; this server allows at most {limit}"
        raise ApiError(400, "invalid_value", message, "max_tokens")
    return params


def reply_tokens(model: ServedModel) -> int:
    """How long the replies of a model get where nobody says: EVA's are short, others end."""
    if model.hello is None or model.hello["family"] == "eva":
        return USUAL_TOKENS
    return model.hello["slot_tokens"]


def job_spec(
    task: Task,
    params: dict[str, Any],
    num_choices: int = 1,
    top_logprobs: int | None = None,
    format: dict[str, Any] | None = None,
) -> JobSpec:
    """What a model is sent."""
    return {
        "task": task,
        "params": params,
        "num_choices": num_choices,
        "top_logprobs": top_logprobs,
        "format": format,
    }


def fingerprint(model: ServedModel) -> str:
    """Changes where the same seed may give another text: with version, weights, or machine."""
    parts = [__version__, model.name]
    if model.hello is not None:
        plan = model.hello["plan"]
        parts += [model.hello["family"], str(model.hello["weight_bytes"]), str(plan.get("device"))]
    return "fp_" + hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def token_words(token: TokenDetails) -> dict[str, Any]:
    """A token of chat's log-probabilities."""
    return {
        "token": token["text"],
        "logprob": finite_logprob(token["logprob"]),
        "bytes": token["bytes"],
    }


def chat_logprobs(tokens: list[TokenDetails]) -> dict[str, Any]:
    """Chat's ``logprobs`` for some tokens."""
    content = [
        {**token_words(token), "top_logprobs": [token_words(top) for top in token.get("top", ())]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}
