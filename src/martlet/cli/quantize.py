"""martlet quantize: from a float model to a folder of integers, with calibration or without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from martlet.cli.fetching import locate_model
from martlet.cli.options import TEXT, as_json, device_options
from martlet.cli.output import duration, note, peak_memory, print_json, print_text
from martlet.cli.progress import Meter
from martlet.device.size import format_bytes

if TYPE_CHECKING:
    from martlet.api.compressing import CompressionReport

__all__ = ["command"]

_PATH = click.Path(path_type=Path)


@click.command("quantize")
@click.argument("src", metavar="SRC", type=TEXT)
@click.argument("dst", metavar="DST", type=_PATH)
@click.option(
    "--method",
    type=click.Choice(["nearest", "gptq", "scaled", "scaled+gptq"]),
    default=None,
    help="How integers are chosen; all but nearest need --calibration. Left out, gptq with it and "
    "nearest without.",
)
@click.option(
    "--format",
    "format",
    type=TEXT,
    default=None,
    metavar="FORMAT",
    help="int8, int4 (groups of 32), int8-gN, int4-gN or int4-gN-asym with N 32, 64 or 128. Left "
    "out, int4-g64 with --calibration and int8 without.",
)
@click.option("--head", type=TEXT, metavar="FORMAT", help="Format of the output matrix.")
@click.option("--embedding", type=TEXT, metavar="FORMAT", help="Format of the token table.")
@click.option(
    "--edges",
    type=TEXT,
    metavar="FORMAT",
    help="Format of the first and the last block of each stack.",
)
@click.option(
    "--rule",
    "rules",
    type=TEXT,
    multiple=True,
    metavar="PATTERN=FORMAT",
    help="Format of the matrices with such names, before all others; none leaves them float.",
)
@click.option("--calibration", type=_PATH, metavar="FILE", help="UTF-8 text to calibrate on.")
@click.option(
    "--samples", type=int, default=128, show_default=True, metavar="N", help="Pieces of the text."
)
@click.option(
    "--sample-tokens",
    type=int,
    default=512,
    show_default=True,
    metavar="T",
    help="Tokens of a piece, at most.",
)
@click.option(
    "--seed", type=int, default=0, show_default=True, metavar="S", help="Where they are taken."
)
@device_options
@click.option("--report", type=_PATH, metavar="FILE.json", help="Write the errors of all layers.")
@click.option("--plot", type=_PATH, metavar="FILE", help="Draw them, to .svg or .png.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it is a model folder.")
@as_json
def command(as_json: bool, **options: Any) -> None:
    """Write the float model SRC to DST with its matrices as integers of 4 or 8 bits.

    One block at a time is in memory. Interrupted work goes on where it ended when the same command
    is given again; DST appears whole or not at all.
    """
    from martlet.api.compressing import quantize

    locate_model(options["src"])
    with Meter("compressing") as meter:

        def tell(done: int, total: int, what: str) -> None:
            note(what)
            meter.update(done, total, what.partition(":")[0])

        report = quantize(**options, progress=tell)
    if as_json:
        print_json(report.to_json())
    else:
        print_text(_summary(report))


def _summary(report: CompressionReport) -> str:
    peaks = peak_memory(report.peak_rss_bytes, report.peak_gpu_bytes)
    resumed = f", {report.resumed_blocks} blocks done before" if report.resumed_blocks else ""
    return (
        f"{report.path}: {report.family}, {report.method}, {format_bytes(report.nbytes)}, "
        f"{report.bits_per_weight:.2f} bits a weight, {len(report.layers)} matrices, "
        f"{report.num_tokens:,} tokens of calibration on {report.device} "
        f"in {duration(report.seconds)} (peak memory {peaks}{resumed})"
    )
