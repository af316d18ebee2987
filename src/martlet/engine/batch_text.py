"""One text of a batch, and what its caller hears of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from martlet.engine.request import Context, Finished, TokenEvent
from martlet.engine.writing import Writing
from martlet.errors import MartletError

__all__ = ["BatchText", "Deliver", "Event", "Failed", "Started"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """A request has left the queue; ``seed`` is the one in force."""

    prompt_tokens: int
    seed: int


@dataclass(frozen=True)
class Failed:
    """The last event of a request that could not be carried out; what came before stands."""

    error: MartletError


Event = Started | TokenEvent | Finished | Failed
Deliver = Callable[[Event], None]
"""Takes the events of one request; called by the thread that steps, so it must not wait."""


@dataclass(eq=False)
class BatchText:
    """A text that has a slot.

    limit_tokens: what its decoder can hold, at most the slot.
    encoder_ids: what the encoder has to read before the decoder; None once that is done.
    held_tokens, held_encoder_tokens: what its slot holds.
    is_stepping: the prompt has been read, decode steps go on with it.
    """

    slot: int
    writing: Writing
    deliver: Deliver
    limit_tokens: int
    encoder_ids: tuple[int, ...] | None = None
    held_tokens: int = 0
    held_encoder_tokens: int = 0
    is_stepping: bool = False

    def __post_init__(self) -> None:
        self._mark_seconds = time.perf_counter()

    @property
    def has_room(self) -> bool:
        """Whether the slot can take all that is unread."""
        return self.held_tokens + len(self.writing.unread) <= self.limit_tokens

    def begin(self, context: Context) -> None:
        """Read this, in a slot that holds nothing."""
        self.held_tokens = self.held_encoder_tokens = 0
        self.encoder_ids = context.encoder_ids
        self.writing.unread[:0] = context.decoder_ids

    def note_read(self, num_tokens: int) -> None:
        """The decoder has read so many of the unread tokens, after the encoder if it had any."""
        if self.encoder_ids is not None:
            self.held_encoder_tokens, self.encoder_ids = len(self.encoder_ids), None
        del self.writing.unread[:num_tokens]
        self.held_tokens += num_tokens

    def lap_seconds(self) -> float:
        """Time since the last lap, or since the text got its slot."""
        now = time.perf_counter()
        before, self._mark_seconds = self._mark_seconds, now
        return now - before

    def send(self, event: Event) -> None:
        """Hand an event to the caller. One who cannot take it is taken to have gone."""
        try:
            self.deliver(event)
        except Exception:
            _log.exception("a listener failed; its text is given up")
            self.deliver = _nobody
            self.writing.request.cancel.set()


def _nobody(event: Event) -> None:
    """Nobody listens."""
