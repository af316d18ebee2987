"""Stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStrings"]


class StopStrings:
    """Lets a text through up to the first stop string.

    The text ends where the stop string that is completed first begins (of several that are
    completed by the same character, the one that begins first). That does not depend on how
    the text is cut into pieces. Only characters that may still become a stop string are held
    back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        assert "" not in stop, "an empty stop string ends every text"
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False

    def push(self, piece: str) -> str:
        """The part of the text that can be shown now, which may be empty."""
        assert not self.stopped, "text pushed after the stop string"
        if not self._stop:
            return piece
        text = self._held + piece
        found = [(start + len(s), start) for s in self._stop if (start := text.find(s)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            return text[: min(found)[1]]
        num_shown = len(text) - self._num_held(text)
        self._held = text[num_shown:]
        return text[:num_shown]

    def flush(self) -> str:
        """What was held back, now that no more text comes."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        longest = max(map(len, self._stop)) - 1
        for num_held in range(min(longest, len(text)), 0, -1):
            tail = text[-num_held:]
            if any(s.startswith(tail) for s in self._stop):
                return num_held
        return 0
