"""Writing blank after blank: what the decoder may choose, and the answers as they grow."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from martlet.engine.request import SamplingParams
from martlet.engine.stop import StopStrings
from martlet.engine.tasks import TaskModel
from martlet.tokenizers.detokenizer import Detokenizer
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["Answer", "BlankByBlank"]


class Answer:
    """One blank while it is written."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.logprob = 0.0
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


class BlankByBlank:
    """The constraint that keeps the decoder to the format; see ``fill.py``.

    ``end_ids`` are the tokens that close the last blank.
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
        self._last_is_text = False
        self._shown: list[tuple[int, str]] = []

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
        answer = self.answers[self._index]
        self._last_is_text = token_id not in self._closing_ids()
        if self._last_is_text:
            self._left_tokens -= 1
            self._show(answer.push(token_id))
            return
        was_forced = len(answer.token_ids) >= self._share_tokens
        self._show(answer.finish(closed=answer.stopped or not was_forced))
        if self._index + 1 < len(self.answers):
            self._index += 1
            self._share_tokens = self._left_tokens // (len(self.answers) - self._index)

    def finish(self) -> None:
        """The end came without a closing token, as on cancelling."""
        answer = self.answers[self._index]
        if not answer.closed:
            self._show(answer.finish(closed=False))

    def add_logprob(self, logprob: float | None) -> None:
        """The log-probability of the token that was accepted last; None if it was forced."""
        if logprob is not None and self._last_is_text:
            self.answers[self._index].logprob += logprob

    def take_shown(self) -> list[tuple[int, str]]:
        """The pieces of text since the last call, each with the index of its blank."""
        shown, self._shown = self._shown, []
        return shown

    def _closing_ids(self) -> frozenset[int]:
        if self._index + 1 == len(self.answers):
            return self.end_ids
        return frozenset({self._sentinels[self._index + 1]})

    def _show(self, piece: str) -> None:
        if piece:
            self._shown.append((self._index, piece))
