"""Lines from a person: edited, completed with Tab, remembered."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, ModuleType

import click

from martlet.cli.repl.entry import CONTINUED, read_entry
from martlet.cli.repl.history import History

__all__ = ["LineReader"]

try:
    import readline as _imported
except ImportError:  # a Python without it has plain lines
    _imported = None  # type: ignore[assignment]


class LineReader:
    """Reads entries. Where stdout is no terminal the prompt goes to stderr, and lines are plain.

    Attributes:
        completions: given a line and where the word to complete begins, what could stand there.
        was_typing: whether there was anything to clear when Ctrl-C came.
    """

    def __init__(self, history: History) -> None:
        self.completions: Callable[[str, int], list[str]] = lambda line, start: []
        self._history = history
        self._found: list[str] = []
        self._readline: ModuleType | None = _imported if sys.stdout.isatty() else None
        self.was_typing = False
        if self._readline is not None:
            self._set_up(self._readline)

    def read(self) -> str:
        """The next entry, perhaps of several lines.

        Raises:
            EOFError: Ctrl-D, or the terminal is gone.
            KeyboardInterrupt: Ctrl-C; ``was_typing`` tells whether there was anything to clear.
        """
        self.was_typing = False
        with self._noting_what_is_cleared():
            entry = read_entry(self._read_part)
        if entry.strip() and self._history.add(entry) and self._readline is not None:
            self._readline.add_history(entry)
        return entry

    def read_line(self, prompt: str) -> str:
        """One line, which is not remembered."""
        if self._readline is not None:
            return input(prompt)
        click.echo(prompt, nl=False, err=True)  # stdout is for answers alone
        return input()

    def _read_part(self, prompt: str) -> str:
        self.was_typing = prompt == CONTINUED
        try:
            return self.read_line(prompt)
        except EOFError:
            if self.was_typing:  # Ctrl-D takes back what was begun, and leaves at the next prompt
                raise KeyboardInterrupt from None
            raise

    def _set_up(self, readline: ModuleType) -> None:
        readline.set_auto_history(False)  # lines that belong together are remembered together
        readline.clear_history()
        for entry in self._history.entries:
            readline.add_history(entry)
        readline.set_completer_delims(" \t\n")
        readline.set_completer(self._complete)
        is_libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")
        if not is_libedit:
            readline.parse_and_bind("set enable-bracketed-paste on")

    def _complete(self, _: str, state: int) -> str | None:
        readline = self._readline
        assert readline is not None, "only readline calls this"
        if state == 0:
            line = readline.get_line_buffer()[: readline.get_endidx()]
            self._found = self.completions(line, readline.get_begidx())
        return self._found[state] if state < len(self._found) else None

    @contextmanager
    def _noting_what_is_cleared(self) -> Iterator[None]:
        before = signal.getsignal(signal.SIGINT)
        if before in (signal.SIG_IGN, None):
            yield
            return
        signal.signal(signal.SIGINT, self._on_interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_interrupt(self, _: int, __: FrameType | None) -> None:
        if self._readline is not None:
            self.was_typing |= bool(self._readline.get_line_buffer())
        raise KeyboardInterrupt
