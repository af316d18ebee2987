"""What goes to the terminal: results to stdout, everything else to stderr."""

from __future__ import annotations

import contextlib
import json
import math
import select
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import click

from martlet.device.size import format_bytes
from martlet.errors import UsageError

__all__ = [
    "duration",
    "is_interactive",
    "note",
    "peak_memory",
    "print_json",
    "print_json_line",
    "print_table",
    "print_text",
    "prompt_with_standard_input",
    "read_standard_input",
    "say",
    "shown",
]

_SECONDS_BEFORE_A_WORD = 2.0

# A vocabulary or a configuration may come from a stranger: what steers a terminal is not text.
_STEERING = {
    code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"
}


def shown(text: str, stream: TextIO | None = None) -> str:
    """A text as a stream (stdout) may have it: without control characters on a terminal."""
    is_terminal = (sys.stdout if stream is None else stream).isatty()
    return text.translate(_STEERING) if is_terminal else text


def print_text(text: str) -> None:
    """Write a result and a line end."""
    sys.stdout.write(shown(text) + "\n")
    sys.stdout.flush()


def print_json(value: Any) -> None:
    """Write a result for scripts: strict JSON (infinity becomes null), characters as they are."""
    print_text(json.dumps(_finite(value), ensure_ascii=False, indent=2, allow_nan=False))


def print_json_line(value: Any) -> None:
    """Write one of many results for scripts, as ``print_json`` does, on one line."""
    print_text(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def print_table(rows: Sequence[Sequence[str]], *, right: Iterable[int] = ()) -> None:
    """Write rows in columns, the first row as the heading; columns in ``right`` align right.

    Chinese characters count two columns, as terminals draw them.
    """
    from rich.cells import cell_len

    aligned_right = frozenset(right)
    widths = [max(cell_len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = []
        for i, (cell, width) in enumerate(zip(row, widths, strict=True)):
            gap = " " * (width - cell_len(cell))
            cells.append(gap + cell if i in aligned_right else cell + gap)
        print_text("  ".join(cells).rstrip())


def note(text: str) -> None:
    """Write a line about the work, not of it, to stderr."""
    if sys.stderr.isatty():
        text = click.style(text, dim=True)
    click.echo(text, err=True)


def say(text: str) -> None:
    """Write a message to stderr, on a terminal broken between words."""
    if not sys.stderr.isatty():
        click.echo(text, err=True)
        return
    from rich.console import Console

    Console(stderr=True, highlight=False, markup=False).print(shown(text, sys.stderr))


def is_interactive() -> bool:
    """Whether a person types at the other end of stdin."""
    return sys.stdin is not None and sys.stdin.isatty()


def read_standard_input() -> str:
    """All of stdin as text, without the line end that shells and editors put last.

    Raises:
        UsageError: stdin is closed, empty or not UTF-8.
    """
    if sys.stdin is None:
        raise UsageError("stdin is closed; give the text as an argument")
    text = _standard_input()
    if not text.strip():
        raise UsageError("stdin is empty; pipe a text into it, or see --help for other ways")
    return text


def _standard_input() -> str:
    """All of stdin; nothing where nothing was piped into it."""
    raw = sys.stdin.buffer.read()
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"stdin is not UTF-8 text: byte 0x{raw[error.start]:02x} at offset {error.start:,}; "
            "convert it first, e.g. with `iconv -f GB18030 -t UTF-8`"
        ) from error
    return text.removesuffix("\n").removesuffix("\r")


def _say_what_is_waited_for() -> None:
    """A program that is started with a pipe that stays open would wait without a word."""
    with contextlib.suppress(OSError, ValueError):  # a stdin that is no file has what it has
        if not select.select([sys.stdin.fileno()], [], [], _SECONDS_BEFORE_A_WORD)[0]:
            note("waiting for the end of stdin, which is read behind PROMPT; < /dev/null is none")


def prompt_with_standard_input(prompt: str | None) -> str:
    """The argument with what is piped into stdin behind it; stdin where it is None or "-".

    Raises:
        UsageError: there is no text, or stdin is not UTF-8.
    """
    if prompt is None or prompt == "-":
        return read_standard_input()
    if not prompt.strip():
        raise UsageError("PROMPT is empty; give at least one character")
    if sys.stdin is None or is_interactive():
        return prompt
    _say_what_is_waited_for()
    piped = _standard_input()
    return f"{prompt}\n\n{piped}" if piped.strip() else prompt


def duration(seconds: float) -> str:
    """A time for people: 340 ms, 2.1 s, 3 min 20 s."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value


def peak_memory(rss_bytes: int, gpu_bytes: int | None) -> str:
    """The most memory that was taken, for people: "1.2 GiB, GPU 3.4 GiB"; None without a GPU."""
    gpu = "" if gpu_bytes is None else f", GPU {format_bytes(gpu_bytes)}"
    return format_bytes(rss_bytes) + gpu
