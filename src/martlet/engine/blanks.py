"""Writing blank after blank: what the decoder may choose, and the answers as they grow."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from martlet.engine.request import SamplingParams, TokenEvent
from martlet.engine.stop import StopStrings
from martlet.engine.tasks import TaskModel
from martlet.tokenizers.detokenizer import Detokenizer
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["Answer", "BlankByBlank"]


class Answer:
    """One blank while it is written."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.token_ids: list[int] = []
        self.tokens: list[TokenEvent] = []  # the same, as far as their events have been taken
        self.text = ""
        self.closed = False
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(stop)
        self._seen_text = False

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended it."""
        return self._stop.stopped

    @property
    def may_close(self) -> bool:
        """Whether there is more than white space, so that the blank counts as answered."""
        return self._seen_text

    def push(self, token_id: int) -> str:
        """Add a token; the text that can be shown now."""
        self.token_ids.append(token_id)
        return self._show(self._detokenizer.push(token_id))

    def finish(self, closed: bool) -> str:
        """The text that was held back; nothing comes after it."""
        self.closed = closed
        if self._stop.stopped:
            return ""
        piece = self._show(self._detokenizer.flush())
        if not self._stop.stopped:
            rest = self._stop.flush()
            self.text += rest
            piece += rest
        return piece

    def _show(self, piece: str) -> str:
        self._seen_text = self._seen_text or bool(piece.strip())
        shown = self._stop.push(piece)
        self.text += shown
        return shown


@dataclass(frozen=True)
class _Accepted:
    """What came of a token: text for blanks, and the answer that it is part of, if of any."""

    answer: Answer | None
    shown: list[tuple[int, str]]


class BlankByBlank:
    """The constraint that keeps the decoder to the format; see ``fill.py``.

    ``end_ids`` are the tokens that close the last blank. The events of the tokens may be taken
    later than the tokens are accepted, also by another thread; ``finish`` comes after all.
    """

    def __init__(self, model: TaskModel, num_blanks: int, params: SamplingParams) -> None:
        self.answers = [Answer(model.tokenizer, params.stop) for _ in range(num_blanks)]
        self._sentinels = model.special.sentinels
        eos = model.special.eos
        self.end_ids = frozenset({self._sentinels[num_blanks], *([] if eos is None else [eos])})
        self._mask = model.suppressed()
        self._index = 0
        self._left_tokens = params.max_tokens
        self._share_tokens = params.max_tokens // num_blanks
        self._accepted: deque[_Accepted] = deque()  # those whose events have not been taken

    def forced(self) -> int | None:
        """The closing sentinel, once the blank has used up its share or hit a stop string."""
        answer = self.answers[self._index]
        if answer.stopped or len(answer.token_ids) >= self._share_tokens:
            return self._sentinels[self._index + 1]
        return None

    def suppressed(self) -> Tensor:
        """All control tokens, but for the closing one once there is an answer to close."""
        if not self.answers[self._index].may_close:
            return self._mask
        mask = self._mask.clone()
        mask[sorted(self._closing_ids())] = False
        return mask

    def accept(self, token_id: int) -> None:
        """Add the token to its blank, or close the blank."""
        index, answer = self._index, self.answers[self._index]
        if token_id not in self._closing_ids():
            self._left_tokens -= 1
            shown = _shown(index, answer.push(token_id))
            self._accepted.append(_Accepted(answer, shown))
            return
        was_forced = len(answer.token_ids) >= self._share_tokens
        shown = _shown(index, answer.finish(closed=answer.stopped or not was_forced))
        self._accepted.append(_Accepted(None, shown))
        if self._index + 1 < len(self.answers):
            self._index += 1
            self._share_tokens = self._left_tokens // (len(self.answers) - self._index)

    def take(self, event: TokenEvent) -> list[tuple[int, str]]:
        """The text that the next token has shown, each piece with the index of its blank."""
        accepted = self._accepted.popleft()
        if accepted.answer is not None:
            accepted.answer.tokens.append(event)
        return accepted.shown

    def finish(self) -> list[tuple[int, str]]:
        """The text that is left, now that no token follows."""
        # The token that ends a text has no event.
        shown = [piece for accepted in self._accepted for piece in accepted.shown]
        self._accepted.clear()
        answer = self.answers[self._index]
        if not answer.closed:  # it came without a closing token, as on cancelling
            shown += _shown(self._index, answer.finish(closed=False))
        return shown

    def _closing_ids(self) -> frozenset[int]:
        if self._index + 1 == len(self.answers):
            return self.end_ids
        return frozenset({self._sentinels[self._index + 1]})


def _shown(index: int, piece: str) -> list[tuple[int, str]]:
    return [(index, piece)] if piece else []
