"""Filling the blanks of a text, with the span format of CPM-2 and T5.

The encoder reads the text with a sentinel in place of each blank; the decoder writes the first
sentinel, the text of the first blank, the second sentinel, and so on. Each blank is closed by the
sentinel after it, so while blank i is written, sentinel i + 1 is the only control token that the
model may choose. The first token of a blank can never be the closing one, and a blank that has used
up its share of tokens is closed by force: every blank is answered, and those that the model did not
close itself are reported open.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Generator as PyGenerator
from dataclasses import dataclass, replace

from martlet.engine.blank_marks import BLANK_MARKS, count_blanks, split_at_blanks
from martlet.engine.blanks import BlankByBlank
from martlet.engine.request import Context, Finished, Request, SamplingParams, Stats
from martlet.engine.tasks import TaskModel
from martlet.errors import UsageError

__all__ = ["BLANK_MARKS", "Blank", "Fill", "Filling", "count_blanks", "split_at_blanks"]


@dataclass(frozen=True)
class Blank:
    """The answer to one blank.

    ``closed`` is False where the model had not finished when its share of the tokens was used up.
    ``start`` and ``end`` are its place in ``Fill.text``, in characters.

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


@dataclass(frozen=True)
class Fill:
    """A text with its blanks filled, and each answer on its own."""

    text: str
    blanks: tuple[Blank, ...]
    stats: Stats


class Filling:
    """One text on its way to being filled: iterate for (index of the blank, piece of text).

    Also a context manager that closes itself. ``stats`` is None until the text has ended by itself.

    ``pieces`` are the parts of the text around the blanks. ``params.max_tokens`` is for all blanks
    together; each gets an equal share of what those before it left. A stop string closes the
    blank that it occurs in. ``on_finish`` is called once, when all blanks are done.

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
        on_finish: Callable[[Stats], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> None:
        model.require("fill")
        if isinstance(pieces, str | bytes) or not isinstance(pieces, Sequence):
            raise UsageError(
                f"the text is of type {type(pieces).__name__}; "
                "it must be a string, or the list of the pieces around its blanks"
            )
        self._pieces = tuple(pieces)
        self._result: Fill | None = None
        self._on_finish = on_finish
        num_blanks = len(pieces) - 1
        sentinels = model.sentinels(at_least=2)
        _check_num_blanks(num_blanks, len(sentinels) - 1, params.max_tokens)
        encoder_ids, prompt_ids = _encoder_input(model, pieces)
        start = model.token("pad" if model.family == "t5" else "bos")
        self._constraint = BlankByBlank(model, num_blanks, params)
        self._generator = model.generator
        self._request = Request(
            context=Context((start, sentinels[0]), tuple(encoder_ids)),
            # Closing tokens are not the user's, and stop strings are per blank.
            params=params.replace(max_tokens=params.max_tokens + num_blanks, stop=()),
            constraint=self._constraint,
            eos_ids=self._constraint.end_ids,
            prompt_ids=tuple(prompt_ids),
            cancel=cancel or threading.Event(),
        )
        self._pieces_of_blanks = self._run()

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return self

    def __next__(self) -> tuple[int, str]:
        return next(self._pieces_of_blanks)

    def __enter__(self) -> Filling:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def stats(self) -> Stats | None:
        """How it went."""
        return None if self._result is None else self._result.stats

    def close(self) -> None:
        """End the work between two tokens; where it had not ended, there will be no result."""
        self._pieces_of_blanks.close()

    def _run(self) -> PyGenerator[tuple[int, str]]:
        for event in self._generator.generate(self._request):
            if isinstance(event, Finished):
                self._constraint.finish()
                yield from self._constraint.take_shown()
                self._result = self._assemble(event.stats)
                self._on_finish(self._result.stats)
            else:
                self._constraint.add_logprob(event.logprob)
                yield from self._constraint.take_shown()

    def result(self) -> Fill:
        """The filled text; runs what has not been iterated over yet.

        Raises:
            UsageError: it was closed before the end.
        """
        for _ in self:
            pass
        if self._result is None:
            raise UsageError("this filling was closed before its end; start another")
        return self._result

    def _assemble(self, stats: Stats) -> Fill:
        text = self._pieces[0]
        blanks = []
        for index, answer in enumerate(self._constraint.answers):
            start = len(text)
            text += answer.text
            blanks.append(
                Blank(
                    index=index,
                    text=answer.text,
                    closed=answer.closed,
                    start=start,
                    end=len(text),
                    token_ids=tuple(answer.token_ids),
                    logprob=answer.logprob,
                )
            )
            text += self._pieces[index + 1]
        if stats.finish_reason == "eos" and not all(blank.closed for blank in blanks):
            stats = replace(stats, finish_reason="length")
        return Fill(text, tuple(blanks), stats)


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
