"""What a person means by the lines they type: a message, perhaps of several lines, or a command."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["CONTINUED", "PROMPT", "Entry", "parse_entry", "read_entry"]

PROMPT = "> "
CONTINUED = ". "

_QUOTES = '"""'
# A block may be a message by itself or what a command gets: /system """...
_OPENING = re.compile(r'\s*(/\S+\s+)?"""')


@dataclass(frozen=True)
class Entry:
    """A message (``command`` None), or a command such as "/save" and the text behind it."""

    text: str
    command: str | None = None


def read_entry(read_line: Callable[[str], str]) -> str:
    """The lines that belong together, as they may stand in one line of the history.

    A line that opens a block with three quotes goes on until three quotes end a line; a line that
    ends with a backslash goes on with the next. ``read_line`` is given the prompt.
    """
    text = read_line(PROMPT)
    opening = _OPENING.match(text)
    if opening is not None:
        while not _is_closed(text[opening.end() :]):
            text += "\n" + read_line(CONTINUED)
        return text
    while (len(text) - len(text.rstrip("\\"))) % 2:
        text = text[:-1] + "\n" + read_line(CONTINUED)
    return text


def parse_entry(text: str) -> Entry:
    """What it means. A message that begins with a slash is written with two, or as a block."""
    opening = _OPENING.match(text)
    if opening is not None and _is_closed(text[opening.end() :]):
        block = text[opening.end() :].rstrip()[: -len(_QUOTES)]
        # The line ends beside the quotes belong to the quotes.
        block = block.removeprefix("\n").removesuffix("\n")
        command = opening[1]
        return Entry(block, command and command.strip())
    text = text.strip()
    if text.startswith("//"):
        return Entry(text[1:])
    if text.startswith("/"):
        command, *rest = text.split(maxsplit=1)
        return Entry("".join(rest), command)
    return Entry(text)


def _is_closed(block: str) -> bool:
    return block.rstrip().endswith(_QUOTES)
