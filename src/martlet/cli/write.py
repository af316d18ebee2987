"""martlet write: an opening, continued."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from martlet.cli.answer import load_model, report_answer, stats_fields, text_or_standard_input
from martlet.cli.options import (
    TEXT,
    LoadOptions,
    SamplingOptions,
    as_json,
    load_options,
    model_argument,
    sampling_options,
)
from martlet.cli.output import print_json, stream_text

if TYPE_CHECKING:
    from martlet.api import Model

__all__ = ["command", "write_and_print"]


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
    if not as_json:
        write_and_print(loaded, opening, sampling)
        return
    stream = loaded.write(opening, stream=True, **sampling.arguments())
    text = "".join(stream)
    assert stream.stats is not None, "the text has ended by itself"
    print_json(
        {"model": model, "opening": opening, "text": text, "stats": stats_fields(stream.stats)}
    )
    report_answer(stream.stats, loaded.plan)


def write_and_print(model: Model, opening: str, sampling: SamplingOptions) -> None:
    """Continue one opening on stdout and say how it went."""
    with model.write(opening, stream=True, **sampling.arguments()) as stream:
        stream_text(stream, [])
    report_answer(stream.stats, model.plan)
