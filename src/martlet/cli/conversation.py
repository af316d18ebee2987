"""Reading line after line from a person, and answering each."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Mapping

import click

from martlet.cli.failure import describe
from martlet.cli.output import note
from martlet.errors import MartletError

__all__ = ["converse"]

_PROMPT = "> "


def converse(
    greeting: str, answer: Callable[[str], None], commands: Mapping[str, Callable[[], None]]
) -> None:
    """Answer lines until Ctrl-D or /exit.

    Ctrl-C stops an answer, or the line that is being typed, and the conversation goes on; so it
    does after a mistake of the user's. ``commands`` are further words, such as "/reset".
    """
    with contextlib.suppress(ImportError):  # a Python without readline has plain input
        import readline  # noqa: F401 - the import alone gives input() its line editing
    note(greeting)
    while True:
        try:
            line = _read_line().strip()
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo(err=True)
            note("Ctrl-D leaves")
            continue
        if line == "/exit":
            return
        if line in commands:
            commands[line]()
        elif line == "/help" or line.startswith("/"):
            note(f"{greeting}; /help /exit {' '.join(commands)}".rstrip())
        elif line:
            _answer(line, answer)


def _answer(line: str, answer: Callable[[str], None]) -> None:
    try:
        answer(line)
    except KeyboardInterrupt:
        note("stopped")
    except MartletError as error:
        click.echo(describe(error)[0], err=True)


def _read_line() -> str:
    if sys.stdout.isatty():
        return input(_PROMPT)
    click.echo(_PROMPT, nl=False, err=True)  # stdout is for answers alone
    return input()
