"""When a stream that has nothing to say gives a sign of life."""

from __future__ import annotations

__all__ = ["Heartbeat"]

# Whoever waits in a queue shall know it soon, and hear how it moves, but not each move of it.
_QUEUE_SECONDS = 1.0


class Heartbeat:
    """Decides, and knows no clock: all times are those of one that the caller reads, in seconds.

    Args:
        silence_seconds: longest silence of the stream.
        now_seconds: when it began.
    """

    def __init__(self, silence_seconds: float, now_seconds: float) -> None:
        self._silence_seconds = silence_seconds
        self._last_seconds = now_seconds
        self._told: int | None = None  # the place in the queue, once it was told

    def note_sent(self, now_seconds: float) -> None:
        """Something else was sent, which is a sign of life too."""
        self._last_seconds = now_seconds

    def wait_seconds(self, position: int | None, now_seconds: float) -> float:
        """How long to wait for something to say before looking again."""
        until = self._last_seconds + self._silence_seconds
        if position is not None:
            soon = self._last_seconds + _QUEUE_SECONDS
            # What has been told already is looked at again and again, since it may change.
            until = min(until, soon if soon > now_seconds else now_seconds + _QUEUE_SECONDS)
        return max(0.0, until - now_seconds)

    def is_due(self, position: int | None, now_seconds: float) -> bool:
        """Whether to send a sign now; if so, it counts as sent.

        ``position`` is the place in the queue; None where nothing waits.
        """
        silence_seconds = now_seconds - self._last_seconds
        is_news = position is not None and position != self._told
        if silence_seconds < self._silence_seconds and not (
            is_news and silence_seconds >= _QUEUE_SECONDS
        ):
            return False
        self._last_seconds, self._told = now_seconds, position
        return True
