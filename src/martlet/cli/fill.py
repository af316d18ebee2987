"""martlet fill: the blanks of a text, filled."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from martlet.cli.answer import load_model, report_answer, stats_fields, text_or_standard_input
from martlet.cli.options import (
    TEXT,
    LoadOptions,
    Sampling,
    SamplingOptions,
    as_json,
    load_options,
    model_argument,
    sampling_options,
)
from martlet.cli.output import note, print_json, print_text, shown

if TYPE_CHECKING:
    from martlet.api import Model
    from martlet.engine.fill import Fill
    from martlet.engine.request import Stats

__all__ = ["command", "fill_and_print", "print_filled"]


@click.command("fill")
@model_argument
@click.argument("text", type=TEXT, required=False)
@as_json
@sampling_options
@load_options
def command(
    model: str, text: str | None, as_json: bool, sampling: SamplingOptions, loading: LoadOptions
) -> None:
    """Fill the blanks of TEXT, each written <blank>, <span> or __ (two underscores).

    TEXT is read from stdin where it is - or left out.
    """
    from martlet.engine.fill import split_at_blanks

    text = text_or_standard_input(text, "TEXT")
    split_at_blanks(text)  # a text without a blank is refused before a model is loaded
    loaded = load_model(model, loading)
    report_answer(fill_and_print(loaded, model, text, sampling, as_json), loaded.plan)


def fill_and_print(model: Model, name: str, text: str, sampling: Sampling, as_json: bool) -> Stats:
    """Fill one text and print it; how it went."""
    filled: Fill = model.fill(text, **sampling.arguments())
    if as_json:
        print_json(
            {
                "model": name,
                "text": filled.text,
                "blanks": [
                    {
                        "index": blank.index,
                        "text": blank.text,
                        "start": blank.start,
                        "end": blank.end,
                        "closed": blank.closed,
                        "logprob": blank.logprob,
                    }
                    for blank in filled.blanks
                ],
                "stats": stats_fields(filled.stats),
            }
        )
    else:
        print_filled(filled)
        cut_short = [str(blank.index + 1) for blank in filled.blanks if not blank.closed]
        if cut_short:
            note(f"cut short by --max-tokens: blank {', '.join(cut_short)}")
    return filled.stats


def print_filled(filled: Fill) -> None:
    """Print a filled text; on a terminal the fills stand out."""
    if not sys.stdout.isatty():
        print_text(filled.text)
        return
    from rich.console import Console
    from rich.text import Text

    styled = Text(shown(filled.text))
    for blank in filled.blanks:
        styled.stylize("bold green", blank.start, blank.end)
    # soft_wrap leaves the line ends to the terminal, so that a copied text has none too many.
    Console(highlight=False).print(styled, soft_wrap=True)
