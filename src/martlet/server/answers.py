"""What the events of a request add up to; each API words it in its own way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from martlet.server.messages import CallDetails, Event, TokenDetails

__all__ = ["Answer", "ResultAnswer", "Tally", "Written", "finite_logprob", "new_id"]

_SMALLEST_LOGPROB = -9999.0


class Answer(Protocol):
    """The words of one API for the events of a request."""

    def add(self, job: int, event: Event) -> Sequence[dict[str, Any]]:
        """Take note of an event of a job; the objects that a stream shows for it."""
        ...

    def end(self) -> Sequence[dict[str, Any]]:
        """The last objects of a stream."""
        ...

    def whole(self) -> dict[str, Any]:
        """The answer in one object, once all events have come."""
        ...

    @property
    def tally(self) -> Tally:
        """What has been noted."""
        ...


@dataclass
class Written:
    """One text of an answer, what the model thought before it, and what it wants called so far."""

    text: str = ""
    thoughts: str = ""
    calls: list[CallDetails] = field(default_factory=list)
    tokens: list[TokenDetails] = field(default_factory=list)
    finish_reason: str | None = None
    stats: Mapping[str, Any] = field(default_factory=dict)
    fill: Mapping[str, Any] = field(default_factory=dict)

    @property
    def mean_logprob(self) -> float:
        """How probable its tokens were on average, in nats; for choosing the best of some."""
        logprobs = [finite_logprob(token["logprob"]) for token in self.tokens]
        return sum(logprobs) / len(logprobs) if logprobs else _SMALLEST_LOGPROB


class Tally:
    """The choices of all jobs of a request, by (number of the job, number of the choice)."""

    def __init__(self) -> None:
        self.created = int(time.time())
        self.choices: dict[tuple[int, int], Written] = {}
        self._prompt_tokens: dict[int, int] = {}

    def add(self, job: int, event: Event) -> Written:
        """Take note of an event; the choice that it belongs to."""
        choice = self.choices.setdefault((job, event.get("choice", 0)), Written())
        if "prompt_tokens" in event:
            self._prompt_tokens[job] = event["prompt_tokens"]
        if event.get("is_thought"):
            choice.thoughts += event.get("text", "")
        else:
            choice.text += event.get("text", "")
        if "call" in event:
            choice.calls.append(event["call"])
        choice.tokens += event.get("tokens", ())
        if event["event"] == "finished":
            choice.finish_reason = event["finish_reason"]
            choice.stats = event.get("stats", {})
            choice.fill = event.get("fill", {})
        return choice

    def in_order(self) -> list[Written]:
        """The choices of the first job, then those of the second."""
        return [self.choices[key] for key in sorted(self.choices)]

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts; a prompt counts once, however many choices it has."""
        return sum(self._prompt_tokens.values())

    @property
    def output_tokens(self) -> int:
        """Tokens of all choices, shown or not."""
        return sum(self._stats("output_tokens"))

    def usage(self) -> dict[str, Any]:
        """OpenAI's count of tokens."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.output_tokens,
            "total_tokens": self.prompt_tokens + self.output_tokens,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    @property
    def prefill_seconds(self) -> float:
        """From the start of the work to the first token, of the choice that took longest."""
        return max(self._stats("prefill_seconds"), default=0.0)

    @property
    def decode_seconds(self) -> float:
        """All tokens after the first, of the choice that took longest."""
        return max(self._stats("decode_seconds"), default=0.0)

    def timings(self) -> dict[str, float]:
        """How long reading and writing took, and the speed of all choices together."""
        num_later = sum(max(0, count - 1) for count in self._stats("output_tokens"))
        seconds = self.decode_seconds
        return {
            "prefill_seconds": self.prefill_seconds,
            "decode_seconds": seconds,
            "tokens_per_second": num_later / seconds if seconds > 0 else 0.0,
        }

    def _stats(self, name: str) -> Iterable[Any]:
        return [choice.stats[name] for choice in self.choices.values() if name in choice.stats]


def finite_logprob(logprob: float | None) -> float:
    """A log-probability that JSON can hold; a forced token was certain."""
    if logprob is None:
        return 0.0
    return max(logprob, _SMALLEST_LOGPROB) if math.isfinite(logprob) else _SMALLEST_LOGPROB


def new_id(prefix: str, request_id: str) -> str:
    """The id of an answer: that of its request behind OpenAI's word for its kind."""
    return f"{prefix}-{request_id}"


class ResultAnswer:
    """The answer to a task that has a result and no text; ``word`` makes the object."""

    def __init__(self, word: Callable[[Any, int], dict[str, Any]]) -> None:
        self.tally = Tally()
        self._word = word
        self._value: Any = None

    def add(self, job: int, event: Event) -> Sequence[dict[str, Any]]:
        """Keep the result."""
        self.tally.add(job, event)
        if event["event"] == "result":
            self._value = event["value"]
        return ()

    def end(self) -> Sequence[dict[str, Any]]:
        """Nothing: results are not streamed."""
        return ()

    def whole(self) -> dict[str, Any]:
        """The result and the number of tokens that were read for it, in the API's words."""
        return self._word(self._value, self.tally.prompt_tokens)
