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

from martlet.engine.blank_marks import BLANK_MARKS, count_blanks, split_at_blanks
from martlet.engine.fill_request import Blank, Fill, FillRequest
from martlet.engine.request import Finished, SamplingParams, Stats
from martlet.engine.tasks import TaskModel
from martlet.errors import UsageError

__all__ = ["BLANK_MARKS", "Blank", "Fill", "Filling", "count_blanks", "split_at_blanks"]


class Filling:
    """One text on its way to being filled: iterate for (index of the blank, piece of text).

    Also a context manager that closes itself. ``stats`` is None until the text has ended by itself.

    For ``pieces``, ``params`` and what is raised see ``FillRequest``. ``on_finish`` is called once,
    when all blanks are done.
    """

    def __init__(
        self,
        model: TaskModel,
        pieces: Sequence[str],
        params: SamplingParams,
        on_finish: Callable[[Stats], None] = lambda _: None,
        cancel: threading.Event | None = None,
    ) -> None:
        self._fill = FillRequest(model, pieces, params, cancel)
        self._generator = model.generator
        self._result: Fill | None = None
        self._on_finish = on_finish
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
        for event in self._generator.generate(self._fill.request):
            yield from self._fill.take(event)
            if isinstance(event, Finished):
                assert self._fill.result is not None
                self._result = self._fill.result
                self._on_finish(self._result.stats)

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
