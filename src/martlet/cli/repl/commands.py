"""Words with a slash that a person can type in place of a message."""

from __future__ import annotations

import difflib
import glob
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import click

from martlet.errors import UsageError

__all__ = ["Command", "Commands", "Leave"]

_ALIASES = {"/?": "/help", "/quit": "/exit", "/bye": "/exit", "/clear": "/reset"}


class Leave(Exception):  # noqa: N818 - not an error
    """The person wants to go."""


@dataclass(frozen=True)
class Command:
    """One word, what it does with the text behind it, and its line in /help.

    ``values`` are what the Tab key offers behind it; with ``takes_file`` these are files.
    """

    name: str
    arguments: str
    summary: str
    run: Callable[[str], None]
    values: tuple[str, ...] = ()
    takes_file: bool = False


class Commands:
    """The commands of a session; /help and /exit are always among them."""

    def __init__(self, commands: Iterable[Command]) -> None:
        every = [
            Command("/help", "", "list what can be typed", self._help),
            *commands,
            Command("/exit", "", "leave (Ctrl-D too)", self._exit),
        ]
        self._commands = {command.name: command for command in every}

    def run(self, name: str, text: str) -> None:
        """Carry out a command.

        Raises:
            UsageError: there is none of that name; names the nearest.
            Leave: it was the one that leaves.
        """
        command = self._commands.get(_ALIASES.get(name, name))
        if command is None:
            raise UsageError(self._unknown(name))
        if text and not command.arguments:
            raise UsageError(f"{command.name} takes nothing behind it, got {text!r:.40}")
        command.run(text)

    def completions(self, line: str, start: int) -> list[str]:
        """What could stand from ``start`` to the end of a line, in place of what does."""
        name, space, rest = line.partition(" ")
        if not space:
            found = [n for n in self._commands if line and n.startswith(line)]
            return [n + (" " if self._commands[n].arguments else "") for n in found]
        command = self._commands.get(name)
        if command is None:
            return []
        text = rest.lstrip()
        text_start = len(line) - len(text)
        if start < text_start:
            return []
        words = [value for value in command.values if value.startswith(text)]
        whole = words + (_files(text) if command.takes_file else [])
        # Readline asks for the last word alone, while a file's name may have several.
        return [candidate[start - text_start :] for candidate in whole]

    def _help(self, _: str) -> None:
        rows = [(f"{c.name} {c.arguments}".rstrip(), c.summary) for c in self._commands.values()]
        rows += [
            ('"""', "begins and ends a text of several lines"),
            ("\\", "at the end of a line: the text goes on in the next"),
            ("//text", "a text that begins with a slash"),
            ("Ctrl-C", "stops an answer; clears the line; twice leaves"),
        ]
        width = max(len(name) for name, _ in rows)
        for name, summary in rows:
            click.echo(f"  {name:<{width}}  {summary}", err=True)

    def _exit(self, _: str) -> None:
        raise Leave

    def _unknown(self, name: str) -> str:
        near = difflib.get_close_matches(name, [*self._commands, *_ALIASES], n=1)
        hint = f"did you mean {near[0]}?" if near else "/help lists them;"
        return f"no command {name:.30}; {hint} what begins with // is sent as text"


def _files(text: str) -> list[str]:
    """Files and folders whose names begin so, folders with a slash behind them."""
    pattern = glob.escape(os.path.expanduser(text)) + "*"
    home = str(Path.home()) if text.startswith("~/") else ""
    found = []
    for path in sorted(glob.glob(pattern)):
        name = "~" + path.removeprefix(home) if home else path
        found.append(name + ("/" if os.path.isdir(path) else ""))
    return found
