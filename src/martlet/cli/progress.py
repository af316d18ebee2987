"""How far a long piece of work has come, on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType
from typing import TYPE_CHECKING

import click

from martlet.cli.output import duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["Loading", "Meter", "Waiting", "working"]

_SECONDS_BETWEEN_LINES = 5.0
_SECONDS_BEFORE_WAITING_SHOWS = 0.7


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show on a terminal that something takes a moment."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield


class Waiting:
    """Shows on a terminal, after a moment, that something goes on and for how long it has.

    A context manager; when it ends, its line is gone.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._lock = threading.Lock()
        self._is_over = False
        self._shown: Progress | None = None
        self._timer = threading.Timer(_SECONDS_BEFORE_WAITING_SHOWS, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Waiting:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._is_over = True
            if self._shown is not None:
                self._shown.stop()

    def _show(self) -> None:
        from rich.console import Console
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        with self._lock:
            if self._is_over:
                return
            self._shown = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._shown.add_task(self._what, total=None)
            self._shown.start()


class Meter:
    """Progress with the time that is left: a bar on a terminal, elsewhere a line now and then.

    Work that is over before the first line was due says nothing. With ``has_lines_of_detail`` the
    lines name what is being worked on, as the bar does.
    """

    def __init__(self, what: str, *, has_lines_of_detail: bool = False) -> None:
        self._what = what
        self._has_lines_of_detail = has_lines_of_detail
        self._start = self._last_line = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Meter:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f} %"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(self._what, total=None, detail="")
            self._bar.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, done: int, total: int, detail: str = "") -> None:
        """Tell how much of how much is done; ``detail`` names what is being worked on."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total, detail=detail)
            return
        now = time.monotonic()
        if now - self._last_line < _SECONDS_BETWEEN_LINES or not 0 < done <= total:
            return
        self._last_line = now
        left = (now - self._start) * (total - done) / done
        line = f"{self._what}: {done / total:.0%}, {duration(left)} left"
        if self._has_lines_of_detail and detail:
            line += f"; {detail}"
        click.echo(line, err=True)


class Loading:
    """A spinner on a terminal while work begins, and a ``Meter`` once it can tell how far it is.

    Work that is over within a moment keeps the spinner.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._stack = contextlib.ExitStack()
        self._meter: Meter | None = None
        self._first_update: float | None = None

    def __enter__(self) -> Loading:
        self._stack.enter_context(working(self._what))
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def update(self, done: int, total: int, _: str = "") -> None:
        """Tell how much of how much is done."""
        now = time.monotonic()
        if self._first_update is None:
            self._first_update = now
        if self._meter is None:
            if now - self._first_update < _SECONDS_BEFORE_WAITING_SHOWS:
                return
            self._stack.close()  # a terminal has room for one of them
            self._meter = self._stack.enter_context(Meter(self._what))
        self._meter.update(done, total)
