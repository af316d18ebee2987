"""martlet perplexity: how well models predict a text, and what formats of weights cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from martlet.cli.fetching import locate_model
from martlet.cli.options import TEXT, LoadOptions, as_json, load_options_of_several
from martlet.cli.output import note, print_json, print_table, print_text
from martlet.cli.progress import Meter, working
from martlet.engine.text_file import read_text_file

if TYPE_CHECKING:
    from martlet.api.comparing import FormatScore, Variant

__all__ = ["command"]

_HEADS = ("model", "format", "bits", "b/char", "perplexity", "change", "KL", "top-1")
_WIDTH = 80


@click.command("perplexity")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=TEXT)
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--against", metavar="MODEL", type=TEXT, help="Compare with this model, as it is stored."
)
@as_json
@load_options_of_several
def command(
    models: tuple[str, ...],
    file: Path,
    against: str | None,
    as_json: bool,
    loading: LoadOptions,
) -> None:
    """Measure how well MODEL predicts the text in FILE: bits per character and perplexity.

    FILE is UTF-8 text. A decoder-only model reads it in windows that overlap by half; an
    encoder-decoder model predicts it piece by piece from what stands before. The first token
    (the first piece of context) is not scored.

    Several models, or one in several formats (--quantize none,int8,int4-g32), are shown side by
    side. The first, or that of --against, is what the others are compared with: change of the
    perplexity, KL divergence in nats for a token, and how often the likeliest token is the same.
    """
    text = read_text_file(file, "the text").text
    for model in (*models, *([] if against is None else [against])):
        locate_model(model)
    with working("loading torch"):
        from martlet.api.comparing import compare_formats
    variants = _variants(models, against, loading)
    options = replace(loading, quantize=None).arguments()
    options.pop("quantize")
    with Meter("scoring") as meter:
        results = list(compare_formats(variants, text, options, meter.update))
    if as_json:
        rows = [_fields(result, file) for result in results]
        print_json(rows if len(rows) > 1 else rows[0])
    elif len(results) == 1:
        _print_one(results[0])
    else:
        print_table(_rows(results), right=range(2, len(_HEADS)))
    for result in results:
        label = f"{result.variant.label}: " if len(results) > 1 else ""
        speed = result.score.num_tokens / result.seconds
        note(f"{label}{speed:,.0f} tokens/s; {result.placement}")


def _variants(models: Sequence[str], against: str | None, loading: LoadOptions) -> list[Variant]:
    from martlet.api.comparing import Variant

    quantizes = [None] if loading.quantize is None else loading.quantize.split(",")
    reference = [] if against is None else [Variant(against)]
    return reference + [Variant(model, quantize) for model in models for quantize in quantizes]


def _fields(result: FormatScore, file: Path) -> dict[str, Any]:
    """A row for scripts."""
    score, divergence = result.score, result.divergence
    return {
        "model": str(result.variant.model),
        "file": str(file),
        "format": result.format,
        "bits_per_weight": result.bits_per_weight,
        "bits_per_character": score.bits_per_character,
        "perplexity": score.perplexity,
        "perplexity_change": result.perplexity_change,
        "kl": None if divergence is None else divergence.kl,
        "top1_agreement": None if divergence is None else divergence.top1_agreement,
        "compared_tokens": 0 if divergence is None else divergence.num_tokens,
        "tokens": score.num_tokens,
        "characters": score.num_characters,
        "unknown_tokens": score.num_unknown_tokens,
        "seconds": result.seconds,
    }


def _print_one(result: FormatScore) -> None:
    score = result.score
    print_text(f"bits per character    {score.bits_per_character:.4f}")
    print_text(f"perplexity per token  {score.perplexity:.2f}")
    print_text(f"tokens                {score.num_tokens:,} ({score.num_unknown_tokens:,} unknown)")
    print_text(f"characters            {score.num_characters:,}")
    print_text(f"weights               {result.format}, {result.bits_per_weight:.2f} bits each")


def _rows(results: Sequence[FormatScore]) -> list[tuple[str, ...]]:
    """The table; the first column is what is left of the width."""
    rows = [_row(result) for result in results]
    widths = [max(map(len, column)) for column in zip(_HEADS[1:], *rows, strict=True)]
    room = max(8, _WIDTH - sum(widths) - 2 * len(widths))
    names = [_shortened(Path(str(result.variant.model)).name, room) for result in results]
    return [_HEADS, *((name, *row) for name, row in zip(names, rows, strict=True))]


def _row(result: FormatScore) -> tuple[str, ...]:
    score, change, divergence = result.score, result.perplexity_change, result.divergence
    return (
        result.format,
        f"{result.bits_per_weight:.2f}",
        f"{score.bits_per_character:.4f}",
        f"{score.perplexity:.2f}",
        "-" if change is None else f"{round(change, 4) + 0.0:+.2%}",  # no -0.00 %
        "-" if divergence is None else f"{divergence.kl:.5f}",
        "-" if divergence is None else f"{divergence.top1_agreement:.1%}",
    )


def _shortened(name: str, room: int) -> str:
    return name if len(name) <= room else name[: room - 1] + "…"
