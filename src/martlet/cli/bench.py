"""martlet bench: the speed of a model on this machine."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict
from pathlib import Path

import click

from martlet.cli.options import LoadOptions, as_json, load_options, model_argument
from martlet.cli.output import duration, print_json, print_text
from martlet.cli.progress import Meter
from martlet.device.size import format_bytes

__all__ = ["command"]


@click.command("bench")
@model_argument
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=128,
    show_default=True,
    help="Tokens of the prompt.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    metavar="N",
    default=64,
    show_default=True,
    help="Tokens to generate after the prompt.",
)
@click.option(
    "--repetitions",
    type=click.IntRange(1, 1000),
    metavar="N",
    default=5,
    show_default=True,
    help="Runs that count.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Write the JSON to this file too.",
)
@as_json
@load_options
def command(  # noqa: PLR0913 - one parameter a flag
    model: str,
    prompt_tokens: int,
    max_tokens: int,
    repetitions: int,
    output: Path | None,
    as_json: bool,
    loading: LoadOptions,
) -> None:
    """Measure prefill and decode of MODEL, and the share of what this machine's memory allows.

    Medians over the repetitions, after one run that does not count. The output is greedy and does
    not end early.
    """
    from martlet.bench.measure import Workload, measure
    from martlet.bench.record import write_records
    from martlet.engine.loading import LoadOptions as EngineLoadOptions

    workload = Workload(prompt_tokens, max_tokens, repetitions)
    with Meter("measuring") as meter:
        record = measure(
            model,
            EngineLoadOptions(**loading.arguments()),
            workload,
            shlex.join(["martlet", *sys.argv[1:]]),
            meter.update,
        )
    if output is not None:
        write_records(output, [record])
    if as_json:
        print_json([asdict(record)])
        return
    share, ceiling = record.share_of_limit, record.copy_ceiling_bytes_per_second
    limit = f"{share:.0%} of {ceiling / 1e9:.1f} GB/s" if share and ceiling else "not measured"
    for name, value in (
        ("model", f"{record.shape}, {record.quantize}"),
        ("device", record.device),
        ("threads", f"{record.num_threads}, {record.decode_threads} for single tokens"),
        ("decode", f"{record.decode_tokens_per_second:,.1f} tokens/s"),
        ("prefill", f"{record.prefill_tokens_per_second:,.0f} tokens/s"),
        ("first token", duration(record.time_to_first_token_seconds)),
        ("weights read", f"{format_bytes(record.weight_bytes_per_token)} a token"),
        ("share of limit", limit),
        ("peak memory", format_bytes(record.peak_process_bytes)),
        ("load", duration(record.load_seconds)),
    ):
        print_text(f"{name:<15} {value}")
