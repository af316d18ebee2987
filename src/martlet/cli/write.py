"""martlet write: an opening, continued."""

from __future__ import annotations

import click

from martlet.cli.answer import load_model, text_or_standard_input
from martlet.cli.answer_form import Form, print_answer
from martlet.cli.options import (
    TEXT,
    LoadOptions,
    SamplingOptions,
    as_json,
    load_options,
    model_argument,
    sampling_options,
)

__all__ = ["command"]


@click.command("write")
@model_argument
@click.argument("opening", type=TEXT, required=False)
@as_json
@sampling_options
@load_options
def command(
    model: str, opening: str | None, as_json: bool, sampling: SamplingOptions, loading: LoadOptions
) -> None:
    """Continue OPENING; what follows it is printed as it comes.

    OPENING is read from stdin where it is - or left out.
    """
    opening = text_or_standard_input(opening, "OPENING")
    loaded = load_model(model, loading)
    stream = loaded.write(opening, stream=True, **sampling.arguments())
    form: Form = "json" if as_json else "text"
    print_answer(stream, form, {"model": model, "opening": opening}, loaded.plan)
