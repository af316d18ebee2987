"""The text of a generation, as an iterator of pieces that knows how it went."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from collections.abc import Generator as PyGenerator

from martlet.engine.generator import Generator
from martlet.engine.request import Finished, Request, Stats

__all__ = ["TextStream"]


class TextStream:
    """Pieces of a text as they come; none is empty. Also a context manager that closes itself.

    ``on_finish`` is called with the stats once, when the text has ended by itself.
    """

    def __init__(
        self,
        generator: Generator,
        request: Request,
        on_finish: Callable[[Stats], None] = lambda _: None,
    ) -> None:
        self.stats: Stats | None = None
        self._on_finish = on_finish
        self._cancel = request.cancel
        self._pieces = self._run(generator, request)

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return next(self._pieces)

    def __enter__(self) -> TextStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cancel(self) -> None:
        """Let the text end before its next token, with stats; safe to call at any moment."""
        self._cancel.set()

    def close(self) -> None:
        """End the work between two tokens; ``stats`` stays None if the text had not ended."""
        self._pieces.close()

    def _run(self, generator: Generator, request: Request) -> PyGenerator[str]:
        for event in generator.generate(request):
            if isinstance(event, Finished):
                self.stats = event.stats
                self._on_finish(event.stats)
            if event.text:
                yield event.text
