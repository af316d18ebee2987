"""Reading entry after entry from a person, and answering each."""

from __future__ import annotations

import errno
from collections.abc import Callable

import click

from martlet.cli.failure import describe, is_out_of_memory
from martlet.cli.output import note, say
from martlet.cli.repl.commands import Commands, Leave
from martlet.cli.repl.entry import parse_entry
from martlet.cli.repl.line_reader import LineReader
from martlet.errors import MartletError

__all__ = ["converse"]


def converse(reader: LineReader, commands: Commands, answer: Callable[[str], None]) -> None:
    """Answer entries until the person leaves: /exit, Ctrl-D, or Ctrl-C twice.

    Ctrl-C stops an answer, or clears the line that is being typed, and the conversation goes on;
    so it does after a mistake of the person's. A terminal that is gone ends it quietly.
    """
    try:
        _converse(reader, commands, answer)
    except Leave:
        pass
    except OSError as error:
        if error.errno != errno.EIO:
            raise


def _converse(reader: LineReader, commands: Commands, answer: Callable[[str], None]) -> None:
    is_leaving = False  # after Ctrl-C: another one on an empty line leaves
    while True:
        try:
            text = reader.read()
        except EOFError:
            click.echo(err=True)
            return
        except KeyboardInterrupt:
            click.echo(err=True)
            if is_leaving and not reader.was_typing:
                return
            is_leaving = True
            note("Ctrl-C again or Ctrl-D leaves; /help lists commands")
            continue
        is_leaving = False
        if text.strip():
            _carry_out(text, commands, answer)


def _carry_out(text: str, commands: Commands, answer: Callable[[str], None]) -> None:
    entry = parse_entry(text)
    try:
        if entry.command is None:
            answer(entry.text)
        else:
            commands.run(entry.command, entry.text)
    except KeyboardInterrupt:
        note("stopped")
    except Exception as error:
        if not isinstance(error, MartletError) and not is_out_of_memory(error):
            raise
        say(describe(error)[0])
