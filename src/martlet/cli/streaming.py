"""An answer as it comes: its text to stdout, what the model thinks before it to stderr."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import click

from martlet.cli.output import shown
from martlet.cli.progress import Waiting

if TYPE_CHECKING:
    from martlet.engine.reply import ReplyPart
    from martlet.engine.text import TextStream

__all__ = ["Answer", "parts_of", "show_answer"]


@dataclass
class Answer:
    """What has come so far of an answer."""

    text: str = ""
    thoughts: str = ""

    @property
    def has_begun(self) -> bool:
        """Whether anything has come."""
        return bool(self.text or self.thoughts)

    def add(self, part: ReplyPart) -> None:
        """Take one more piece."""
        if part.kind == "thought":
            self.thoughts += part.text
        else:
            self.text += part.text


def parts_of(stream: TextStream) -> Iterator[ReplyPart]:
    """The pieces of an answer with what they are; a model that does not think only answers."""
    from martlet.engine.reply import ChatStream, ReplyPart

    if isinstance(stream, ChatStream):
        return stream.parts()
    return (ReplyPart("answer", text) for text in stream)


def show_answer(stream: TextStream, answer: Answer, *, keeps_session: bool = False) -> None:
    """Show an answer as it comes and end its line; ``answer`` gets what has come.

    With ``keeps_session`` Ctrl-C ends an answer that has begun after its token, with stats. Before
    that, at the second time, and without it, Ctrl-C is a KeyboardInterrupt as everywhere.
    """
    stopping = _stopped_by_ctrl_c(stream, answer) if keeps_session else contextlib.nullcontext()
    with stream, stopping:
        _show(parts_of(stream), answer)


def _show(parts: Iterator[ReplyPart], answer: Answer) -> None:
    try:
        with Waiting("reading"):
            part = next(parts, None)
        while part is not None:
            is_first = not (answer.thoughts if part.kind == "thought" else answer.text)
            answer.add(part)  # before it is shown: Ctrl-C may come at any moment
            if part.kind == "thought":
                _show_thought(part.text, is_first=is_first)
            else:
                if is_first and answer.thoughts:
                    click.echo("\n", err=True)
                sys.stdout.write(shown(part.text))
                sys.stdout.flush()
            part = next(parts, None)
    finally:
        _end_line(answer)


def _show_thought(text: str, *, is_first: bool) -> None:
    if is_first:
        text = "thinking: " + text
    text = shown(text, sys.stderr)
    if sys.stderr.isatty():
        text = click.style(text, dim=True)
    click.echo(text, nl=False, err=True)


def _end_line(answer: Answer) -> None:
    """Start what follows on a line of its own, also where the answer was stopped."""
    with contextlib.suppress(OSError):
        if answer.thoughts and not answer.text:
            click.echo(err=True)
            return
        sys.stdout.write("\n")
        sys.stdout.flush()


@contextlib.contextmanager
def _stopped_by_ctrl_c(stream: TextStream, answer: Answer) -> Iterator[None]:
    is_asked = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal is_asked
        if is_asked or not answer.has_begun:
            raise KeyboardInterrupt
        is_asked = True
        stream.cancel()

    before = signal.getsignal(signal.SIGINT)
    if before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
