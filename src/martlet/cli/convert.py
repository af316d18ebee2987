"""martlet convert: from a published checkpoint to a model folder."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from martlet.cli.fetching import locate_checkpoint
from martlet.cli.options import TEXT, as_json, offline_option
from martlet.cli.output import duration, print_json, print_text
from martlet.cli.progress import Meter
from martlet.device.size import format_bytes

__all__ = ["command"]


@click.command("convert")
@click.argument("source", metavar="SRC", type=TEXT)
@click.argument("destination", metavar="DST", type=click.Path(path_type=Path))
@click.option(
    "--quantize",
    type=TEXT,
    metavar="FORMAT",
    help="Round the matrices to int8, int4 (groups of 32), int8-gN, int4-gN or int4-gN-asym with N "
    "32, 64 or 128; none makes floats of integers. Left out, everything stays as it is.",
)
@click.option(
    "--tokenizer",
    type=click.Path(path_type=Path),
    help="Vocabulary file or folder, for a checkpoint that has none beside it.",
)
@click.option(
    "--heads",
    type=click.IntRange(1),
    metavar="N",
    help="Attention heads, for a checkpoint that does not tell.",
)
@click.option("--overwrite", is_flag=True, help="Replace DST if it is a model folder.")
@offline_option
@as_json
def command(  # noqa: PLR0913 - one parameter a flag
    source: str,
    destination: Path,
    quantize: str | None,
    tokenizer: Path | None,
    heads: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Convert the checkpoint at SRC into the model folder DST.

    SRC is a folder of Megatron or DeepSpeed shards, a Hugging Face folder, a BMInf checkpoint.pt
    or ORG/NAME on the hub; its layout is found out by itself. DST appears whole or not at all.
    """
    from martlet.conversion.convert import convert

    path = locate_checkpoint(source)
    with Meter("converting") as meter:
        report = convert(
            path,
            destination,
            quantize=quantize,
            tokenizer=tokenizer,
            num_heads=heads,
            overwrite=overwrite,
            progress=meter.update,
        )
    if as_json:
        print_json({**asdict(report), "path": str(report.path)})
        return
    print_text(
        f"{report.path}: {report.family}, {report.num_tensors:,} tensors, "
        f"{format_bytes(report.nbytes)}, quantize {report.quantize} "
        f"({report.bits_per_weight:.2f} bits a weight), from {report.format_name} "
        f"in {duration(report.seconds)} (peak memory {format_bytes(report.peak_rss_bytes)})"
    )
