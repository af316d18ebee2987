"""What goes into a generation and what comes out of it: parameters, request, events."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from torch import Tensor

from martlet.errors import MartletError, UsageError

__all__ = [
    "LARGEST_SEED",
    "MAX_STOP_STRINGS",
    "Constraint",
    "Context",
    "FinishReason",
    "Finished",
    "Request",
    "SamplingParams",
    "Stats",
    "Suppress",
    "TokenEvent",
    "Window",
    "constraint_error",
]

FinishReason = Literal["eos", "stop", "length", "cancelled"]

MAX_STOP_STRINGS = 16
_LARGEST_TOKENS = 1 << 31
LARGEST_SEED = (1 << 63) - 1


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop.

    temperature: 0 takes the most probable token, exactly; 1 is the model's own distribution.
    top_k: only the k most probable tokens; 0 = all.
    top_p: only the smallest set of most probable tokens with at least this probability; 1 = all.
    min_p: only tokens at least this fraction as probable as the best one; 0 = all.
    repetition_penalty: tokens of the prompt and of the output so far get their logit divided
        (positive) or multiplied (negative) by it; 1 = off.
    presence_penalty, frequency_penalty: taken from the logit of a token of the output so far, once,
        and once each time it occurred; -2 to 2; 0 = off.
    stop: strings that end the text; none of them is part of it. A single string is one of them.
    seed: the same seed gives the same text; None draws one.

    Raises:
        UsageError: a value is out of range or of the wrong type; names field, value and limit.
    """

    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "stop", _checked_stop(self.stop))
        _require_int("max_tokens", self.max_tokens, 1, _LARGEST_TOKENS)
        _require_int("top_k", self.top_k, 0, _LARGEST_TOKENS)
        if self.seed is not None:
            _require_int("seed", self.seed, 0, LARGEST_SEED)
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.01, 100.0),
            ("presence_penalty", -2.0, 2.0),
            ("frequency_penalty", -2.0, 2.0),
        ):
            value = _require_number(name, getattr(self, name), low, high)
            object.__setattr__(self, name, value)
        if self.top_p == 0:
            raise UsageError("top_p is 0; it must be above 0 and at most 1 (1 = off)")

    def replace(self, **changes: Any) -> SamplingParams:
        """The same parameters with some fields changed, checked again."""
        return dataclasses.replace(self, **changes)

    @classmethod
    def from_fields(cls, given: Mapping[str, Any], *defaults: Mapping[str, Any]) -> SamplingParams:
        """Parameters from fields where None means "not given", then from the defaults in order.

        Fields of ``defaults`` that are no sampling parameter are passed over, since they come from
        a model's generation_config.json, which holds other things too.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        assert set(given) <= set(names), f"not sampling parameters: {set(given) - set(names)}"
        chosen: dict[str, Any] = {}
        for source in (given, *defaults):
            for name in names:
                if name not in chosen and source.get(name) is not None:
                    chosen[name] = source[name]
        return cls(**chosen)


def _checked_stop(stop: object) -> tuple[str, ...]:
    if isinstance(stop, str):
        stop = (stop,)
    if not isinstance(stop, Sequence) or not all(isinstance(s, str) for s in stop):
        raise UsageError(f"stop is {stop!r}; it must be a string or a list of strings")
    if len(stop) > MAX_STOP_STRINGS:
        raise UsageError(f"stop has {len(stop)} strings; at most {MAX_STOP_STRINGS} are allowed")
    if "" in stop:
        raise UsageError("stop has an empty string, which would end every text; leave it out")
    return tuple(stop)


def _require_int(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise UsageError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")


def _require_number(name: str, value: object, low: float, high: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value) or not low <= value <= high:  # type: ignore[operator, arg-type]
        raise UsageError(f"{name} is {value!r}; it must be a number from {low:g} to {high:g}")
    return float(value)  # type: ignore[arg-type]


class Constraint(Protocol):
    """Decides, step by step, which tokens a text may be made of."""

    def forced(self) -> int | None:
        """The token that comes next whatever the model says, or None to let it choose."""
        ...

    def suppressed(self) -> Tensor | None:
        """Which tokens must not be chosen next: (vocab_size,) bool, or None for none."""
        ...

    def accept(self, token_id: int) -> None:
        """Take note of the token that came, chosen or forced."""
        ...


def constraint_error(error: Exception) -> MartletError:
    """What a request is told when its constraint breaks; the cause is kept."""
    if isinstance(error, MartletError):
        return error
    failure = MartletError(
        f"the constraint of this text failed with {type(error).__name__}: {error}; "
        "ask again without it"
    )
    failure.__cause__ = error
    return failure


@dataclass(frozen=True)
class Suppress:
    """The constraint that the same tokens are never chosen; mask: (vocab_size,) bool."""

    mask: Tensor

    def forced(self) -> int | None:
        """None: the model chooses every token."""
        return None

    def suppressed(self) -> Tensor | None:
        """The mask."""
        return self.mask

    def accept(self, token_id: int) -> None:
        """Nothing to take note of."""


@dataclass(frozen=True)
class Context:
    """What a model reads before it writes; ``encoder_ids`` is None for a decoder-only model."""

    decoder_ids: tuple[int, ...]
    encoder_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Window:
    """How to go on when the decoder's context is full.

    limit_tokens: the decoder never holds more tokens than this.
    restart: makes the next context from all tokens written so far. It must leave room for at
        least one more token.
    """

    limit_tokens: int
    restart: Callable[[Sequence[int]], Context]


@dataclass(frozen=True)
class Request:
    """One text to be generated.

    eos_ids: tokens that end the text and are not part of it.
    prompt_ids: tokens of the prompt as the repetition penalty counts them.
    window: None ends the text where the model has no more positions.
    cancel: once set, the text ends before the next token.
    top_logprobs: how many of the most probable tokens are told beside each token.
    spelled: control tokens that the text shows all the same, and how they are written.
    """

    context: Context
    params: SamplingParams
    constraint: Constraint
    eos_ids: frozenset[int] = frozenset()
    prompt_ids: tuple[int, ...] = ()
    window: Window | None = None
    cancel: threading.Event = field(default_factory=threading.Event)
    top_logprobs: int = 0
    spelled: Mapping[int, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenEvent:
    """One more token, and the text that can be shown now.

    The text is often, but not always, the token's own: parts of characters and what may become a
    stop string are held back. ``logprob`` is None for a token that was forced. ``top`` are the
    most probable tokens in its place, each with its log-probability, the best first, as many as
    ``Request.top_logprobs`` says; none for a token that was forced.
    """

    token_id: int
    text: str
    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Stats:
    """How a generation went. ``output_tokens`` counts every token, shown or not.

    Units:
        prefill_seconds: from the start to the first token, reading the prompt included.
        decode_seconds: all tokens after the first, without the time that the caller took.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    output_tokens: int
    prefill_seconds: float
    decode_seconds: float
    seed: int

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 where there was none after it."""
        if self.output_tokens < 2 or self.decode_seconds <= 0:
            return 0.0
        return (self.output_tokens - 1) / self.decode_seconds

    @property
    def time_to_first_token_seconds(self) -> float:
        """The same as ``prefill_seconds``, under the name that servers use."""
        return self.prefill_seconds


@dataclass(frozen=True)
class Finished:
    """The last event: text that was held back until now, and how it all went."""

    text: str
    stats: Stats
