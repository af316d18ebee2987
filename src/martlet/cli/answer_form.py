"""The forms in which a verb prints one answer: text, JSON, or JSON line by line."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import click

from martlet.cli.answer import report_answer, stats_fields
from martlet.cli.options import as_json
from martlet.cli.output import print_json, print_json_line
from martlet.cli.streaming import Answer, parts_of, show_answer
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.engine.request import Stats
    from martlet.engine.text import TextStream
    from martlet.memory.plan import Plan

__all__ = ["Form", "form_options", "print_answer"]

Form = Literal["text", "json", "lines"]


def form_options(function: Callable[..., None]) -> Callable[..., None]:
    """Add --json and --stream; the verb gets them as ``form: Form``."""

    @as_json
    @click.option(
        "--stream",
        "as_lines",
        is_flag=True,
        help="With --json: a line for every piece as it comes, and one with the stats.",
    )
    @functools.wraps(function)
    def call(*, as_json: bool, as_lines: bool, **flags: Any) -> None:
        if as_lines and not as_json:
            raise UsageError("--stream goes with --json; text comes as it is written anyway")
        form: Form = "lines" if as_lines else "json" if as_json else "text"
        function(**flags, form=form)

    return call


def print_answer(stream: TextStream, form: Form, facts: Mapping[str, Any], plan: Plan) -> None:
    """Print an answer as it comes, or whole as JSON beside ``facts``; say how it went."""
    answer = Answer()
    if form == "text":
        show_answer(stream, answer)
    else:
        with stream:
            for part in parts_of(stream):
                answer.add(part)
                if form == "lines":
                    print_json_line({"thoughts" if part.kind == "thought" else "text": part.text})
        assert stream.stats is not None, "the text has ended by itself"
        _print_end(answer, form, facts, stream.stats)
    report_answer(stream.stats, plan)


def _print_end(answer: Answer, form: Form, facts: Mapping[str, Any], stats: Stats) -> None:
    if form == "lines":
        print_json_line({**facts, "stats": stats_fields(stats)})
        return
    thoughts = {"thoughts": answer.thoughts} if answer.thoughts else {}
    print_json({**facts, "text": answer.text, **thoughts, "stats": stats_fields(stats)})
