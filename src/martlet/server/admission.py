"""Which jobs a model takes, and when a refused client shall come back: arithmetic alone.

Nothing is tokenised for it, so a refusal costs nothing: a character counts as a token.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from martlet.errors import ContextLengthError, MartletError, OverloadedError
from martlet.server.messages import JobSpec

__all__ = ["Admission", "Cost", "Limits", "Refusal", "bounded_retry_after", "cost_of"]

_SHORTEST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 120.0
# What is reckoned with where a job does not say, or nothing has been measured.
_USUAL_OUTPUT_TOKENS = 128
_USUAL_TOKENS_PER_SECOND = 10.0
# How much faster several texts are written than one, until that has been measured. A step reads
# the weights once for all; the bundled models gain 2 to 3 with two texts on one thread of a CPU,
# and models whose weights are streamed nearly the number of texts.
_GAIN_OF_SEVERAL = 2.0
# Weight of the newest measurement of the speed.
_SMOOTHING = 0.3


@dataclass(frozen=True)
class Limits:
    """How much may wait; see ``ServerSettings``."""

    max_queue: int
    max_queued_tokens: int
    max_jobs_per_client: int | None = None


@dataclass
class Cost:
    """What a job may take: tokens to read, and tokens that each choice may still write."""

    prompt_tokens: int
    unwritten_tokens: list[int]
    client: str = ""


@dataclass(frozen=True)
class Refusal:
    """Why a job is not taken: ``reason`` is a word for counters."""

    reason: str
    error: MartletError


def bounded_retry_after(seconds: float) -> float:
    """A time to come back that clients accept: from 1 to 120 seconds."""
    return min(max(seconds, _SHORTEST_RETRY_SECONDS), _LONGEST_RETRY_SECONDS)


def cost_of(job: JobSpec, client: str) -> Cost:
    """What a job may take, from its characters and ``max_tokens``."""
    task = job["task"]
    texts: list[str | list[int]] = [
        text if isinstance(text, str) else json.dumps(text)  # calls of tools
        for message in task.get("messages", ())
        for field, text in message.items()
        if field != "role"
    ]
    texts += [json.dumps(task["tools"]["tools"])] if "tools" in task else []
    texts += task.get("pieces", [])
    texts += task.get("inputs", [])
    texts += [task.get("prompt", ""), task.get("text", ""), task.get("token_ids", [])]
    num_choices = max(1, job["num_choices"])
    writes = task["kind"] in ("chat", "complete", "write", "fill")
    output_tokens = job["params"].get("max_tokens") or _USUAL_OUTPUT_TOKENS
    return Cost(
        prompt_tokens=num_choices * sum(map(len, texts)),
        unwritten_tokens=[output_tokens] * num_choices if writes else [],
        client=client,
    )


class Admission:
    """The jobs of a model, as far as admission needs to know them.

    Attributes:
        num_slots: set once the model is loaded.
        expected_tokens_per_second: of one text, until that has been measured; set likewise.
    """

    def __init__(self, limits: Limits) -> None:
        self.num_slots = 1
        self.expected_tokens_per_second = _USUAL_TOKENS_PER_SECOND
        self._limits = limits
        self._waiting: dict[str, Cost] = {}  # in the order of submission
        self._running: dict[str, Cost] = {}
        self._speed_of_one: float | None = None  # tokens per second
        self._speed_of_several: float | None = None

    @property
    def num_waiting(self) -> int:
        """Jobs of which no choice has left the queue."""
        return len(self._waiting)

    @property
    def num_running(self) -> int:
        """Jobs of which a choice has left the queue."""
        return len(self._running)

    def refusal(self, cost: Cost) -> Refusal | None:
        """Why a job cannot be taken now; None if it can."""
        limits = self._limits
        if cost.prompt_tokens > limits.max_queued_tokens:
            return Refusal(
                "length",
                ContextLengthError(
                    f"the prompt has {cost.prompt_tokens:,} characters, all choices counted, and "
                    f"this server takes at most {limits.max_queued_tokens:,}; use a shorter text, "
                    "or start it with a larger --max-queued-tokens"
                ),
            )
        num_queued = self.num_waiting + 1 - max(0, self.num_slots - self.num_running)
        if num_queued > limits.max_queue:
            return self._overloaded(
                "queue", f"{self.num_waiting} requests wait already, at most {limits.max_queue} may"
            )
        queued_tokens = sum(waiting.prompt_tokens for waiting in self._waiting.values())
        if queued_tokens + cost.prompt_tokens > limits.max_queued_tokens:
            return self._overloaded(
                "tokens",
                f"{queued_tokens:,} characters wait already, at most "
                f"{limits.max_queued_tokens:,} may with the {cost.prompt_tokens:,} of this request",
            )
        if limits.max_jobs_per_client is not None:
            num_jobs = sum(
                other.client == cost.client
                for other in (*self._waiting.values(), *self._running.values())
            )
            if num_jobs >= limits.max_jobs_per_client:
                return self._overloaded(
                    "client",
                    f"this client has {num_jobs} requests at work, at most "
                    f"{limits.max_jobs_per_client} may be",
                )
        return None

    def add(self, job_id: str, cost: Cost) -> None:
        """A job was sent to the model."""
        self._waiting[job_id] = cost

    def start(self, job_id: str) -> None:
        """A choice of the job left the queue."""
        cost = self._waiting.pop(job_id, None)
        if cost is not None:
            self._running[job_id] = cost

    def count_output(self, job_id: str, choice: int, num_tokens: int) -> None:
        """A choice of a running job wrote so many of its tokens."""
        cost = self._running.get(job_id)
        if cost is not None:
            left = cost.unwritten_tokens[choice] - num_tokens
            cost.unwritten_tokens[choice] = max(0, left)

    def end_choice(self, job_id: str, choice: int) -> None:
        """A choice of a running job is complete, however many tokens it might have had."""
        cost = self._running.get(job_id)
        if cost is not None:
            cost.unwritten_tokens[choice] = 0

    def remove(self, job_id: str) -> None:
        """The job has ended, in whatever way."""
        self._waiting.pop(job_id, None)
        self._running.pop(job_id, None)

    def is_waiting(self, job_id: str) -> bool:
        """Whether the job has been sent and no choice of it was started."""
        return job_id in self._waiting

    def position(self, job_id: str) -> int:
        """Jobs that were sent before this one and wait like it; 0 once it runs."""
        return list(self._waiting).index(job_id) if job_id in self._waiting else 0

    def measure(self, tokens_per_second: float, num_texts: int) -> None:
        """The model wrote so many texts with this speed, all of them together."""
        if tokens_per_second <= 0 or num_texts < 1:
            return
        if num_texts == 1:
            self._speed_of_one = _smoothed(self._speed_of_one, tokens_per_second)
        else:
            self._speed_of_several = _smoothed(self._speed_of_several, tokens_per_second)

    def retry_after_seconds(self) -> float:
        """When all that runs and waits now will be done, as far as can be told; 1 to 120."""
        costs = (*self._waiting.values(), *self._running.values())
        texts = [tokens for cost in costs for tokens in cost.unwritten_tokens if tokens]
        return bounded_retry_after(sum(texts) / self._speed(min(len(texts), self.num_slots)))

    def _speed(self, num_texts: int) -> float:
        """Tokens per second of so many texts together."""
        speed_of_one = self._speed_of_one or self.expected_tokens_per_second
        if num_texts < 2:
            return speed_of_one
        return self._speed_of_several or _GAIN_OF_SEVERAL * speed_of_one

    def _overloaded(self, reason: str, message: str) -> Refusal:
        seconds = self.retry_after_seconds()
        error = OverloadedError(f"{message}; try again in {seconds:.0f} s", seconds)
        return Refusal(reason, error)


def _smoothed(before: float | None, newest: float) -> float:
    return newest if before is None else before + _SMOOTHING * (newest - before)
