"""The request that fills the blanks of a text, whoever runs it; see ``fill.py`` for the format."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from martlet.engine.blank_marks import BLANK_MARKS
from martlet.engine.blanks import Answer, BlankByBlank
from martlet.engine.request import Context, Finished, Request, SamplingParams, Stats, TokenEvent
from martlet.engine.tasks import TaskModel
from martlet.errors import UsageError

__all__ = ["Blank", "Fill", "FillRequest"]


@dataclass(frozen=True)
class Blank:
    """The answer to one blank.

    ``closed`` is False where the model had not finished when its share of the tokens was used up.
    ``start`` and ``end`` are its place in ``Fill.text``, in characters. ``tokens`` are the events
    of ``token_ids``, which tell the log-probability of each.

    Units:
        logprob: nats, summed over ``token_ids``.
    """

    index: int
    text: str
    closed: bool
    start: int
    end: int
    token_ids: tuple[int, ...]
    logprob: float
    tokens: tuple[TokenEvent, ...] = field(default=(), repr=False, compare=False)


@dataclass(frozen=True)
class Fill:
    """A text with its blanks filled, and each answer on its own."""

    text: str
    blanks: tuple[Blank, ...]
    stats: Stats


class FillRequest:
    """One text with blanks: the ``request``, and what its events mean.

    ``pieces`` are the parts of the text around the blanks. ``params.max_tokens`` is for all blanks
    together; each gets an equal share of what those before it left. A stop string closes the
    blank that it occurs in. ``result`` is there once the last event has been taken.

    Raises:
        UsageError: not a model that fills, or there are no blanks, more than it has sentinels
            for, or more than tokens to fill them.
        ContextLengthError: the text is longer than what the encoder reads.
    """

    def __init__(
        self,
        model: TaskModel,
        pieces: Sequence[str],
        params: SamplingParams,
        cancel: threading.Event | None = None,
    ) -> None:
        model.require("fill")
        if isinstance(pieces, str | bytes) or not isinstance(pieces, Sequence):
            raise UsageError(
                f"the text is of type {type(pieces).__name__}; "
                "it must be a string, or the list of the pieces around its blanks"
            )
        self._pieces = tuple(pieces)
        self.result: Fill | None = None
        num_blanks = len(pieces) - 1
        sentinels = model.sentinels(at_least=2)
        _check_num_blanks(num_blanks, len(sentinels) - 1, params.max_tokens)
        encoder_ids, prompt_ids = _encoder_input(model, pieces)
        start = model.token("pad" if model.family == "t5" else "bos")
        self._constraint = BlankByBlank(model, num_blanks, params)
        self.request = Request(
            context=Context((start, sentinels[0]), tuple(encoder_ids)),
            # Closing tokens are not the user's, and stop strings are per blank.
            params=params.replace(max_tokens=params.max_tokens + num_blanks, stop=()),
            constraint=self._constraint,
            eos_ids=self._constraint.end_ids,
            prompt_ids=tuple(prompt_ids),
            cancel=cancel or threading.Event(),
        )

    def take(self, event: TokenEvent | Finished) -> list[tuple[int, str]]:
        """What an event adds: pieces of text, none empty, each with the index of its blank.

        To be called for each event in order, when and where the caller likes.
        """
        if isinstance(event, TokenEvent):
            return self._constraint.take(event)
        pieces = self._constraint.finish()
        self.result = self._assemble(event.stats)
        return pieces

    def _assemble(self, stats: Stats) -> Fill:
        text = self._pieces[0]
        blanks = []
        for index, answer in enumerate(self._constraint.answers):
            blanks.append(_blank(index, answer, start=len(text)))
            text += answer.text + self._pieces[index + 1]
        if stats.finish_reason == "eos" and not all(blank.closed for blank in blanks):
            stats = replace(stats, finish_reason="length")
        return Fill(text, tuple(blanks), stats)


def _blank(index: int, answer: Answer, start: int) -> Blank:
    return Blank(
        index=index,
        text=answer.text,
        closed=answer.closed,
        start=start,
        end=start + len(answer.text),
        token_ids=tuple(answer.token_ids),
        logprob=sum(event.logprob for event in answer.tokens if event.logprob is not None),
        tokens=tuple(answer.tokens),
    )


def _check_num_blanks(num_blanks: int, limit: int, max_tokens: int) -> None:
    if num_blanks < 1:
        raise UsageError(f"the text has no blank; write {BLANK_MARKS} where words are missing")
    if num_blanks > limit:
        raise UsageError(
            f"the text has {num_blanks} blanks and the model fills at most {limit} at a time; "
            "split the text"
        )
    if num_blanks > max_tokens:
        raise UsageError(
            f"max_tokens is {max_tokens} for {num_blanks} blanks; each needs at least one token"
        )


def _encoder_input(model: TaskModel, pieces: Sequence[str]) -> tuple[list[int], list[int]]:
    """(what the encoder reads, the same without control tokens)."""
    encoder_ids: list[int] = []
    prompt_ids: list[int] = []
    for index, piece in enumerate(pieces):
        piece_ids = model.encode(piece, f"piece {index + 1} of the text")
        prompt_ids += piece_ids
        encoder_ids += piece_ids
        if index < len(pieces) - 1:
            encoder_ids.append(model.special.sentinels[index])
    if model.family == "t5":
        encoder_ids.append(model.token("eos"))
    model.require_short(len(encoder_ids))
    return encoder_ids, prompt_ids
