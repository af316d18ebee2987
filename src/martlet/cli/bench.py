"""martlet bench: the speed of a model on this machine."""

from __future__ import annotations

import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from martlet.cli.fetching import locate_model
from martlet.cli.options import TEXT, LoadOptions, as_json, load_options
from martlet.cli.output import duration, print_json, print_text
from martlet.cli.progress import Meter
from martlet.device.size import format_bytes
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.bench.record import Record

__all__ = ["command"]


_MODEL_PROMPT_TOKENS = 128
_MODEL_OUTPUT_TOKENS = 64


@click.command("bench")
@click.argument("model", type=TEXT, required=False)
@click.option(
    "--shape",
    type=TEXT,
    metavar="NAME",
    help="Instead of MODEL: random weights at the sizes of cpm2-11b, cpm1, eva, llama-8b, "
    "llama-7b, t5-11b, qwen3-8b, qwen3-14b or qwen3-32b, or of a config.json.",
)
@click.option(
    "--protocol",
    type=click.Choice(["bminf", "prefill512"]),
    help="Tokens to read and to generate for a shape: 256 and 256, or 512 and 129. "
    "[default: bminf with an encoder, else prefill512]",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 4096),
    metavar="N",
    help="Texts at a time, of a shape.  [default: 1]",
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="Tokens of the prompt.  [default: 128, or the protocol's]",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    metavar="N",
    help="Tokens to generate after the prompt.  [default: 64, or the protocol's]",
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
    model: str | None,
    shape: str | None,
    protocol: str | None,
    batch: int | None,
    prompt_tokens: int | None,
    max_tokens: int | None,
    repetitions: int,
    output: Path | None,
    as_json: bool,
    loading: LoadOptions,
) -> None:
    """Measure prefill and decode of MODEL, and the share of what this machine's memory allows.

    Medians over the repetitions, after one run that does not count. The output is greedy and does
    not end early. With --shape the weights are random, int8 unless --quantize says otherwise, made
    in memory without any file.
    """
    from martlet.bench.record import write_records

    lengths = _Lengths(prompt_tokens, max_tokens, repetitions)
    if shape is not None and model is None:
        record = _measure_shape(shape, protocol, batch or 1, lengths, loading)
    elif model is not None and shape is None:
        if protocol is not None or batch is not None:
            raise UsageError("--protocol and --batch go with --shape; leave them out for a MODEL")
        record = _measure_model(model, lengths, loading)
    else:
        raise UsageError("give either MODEL or --shape NAME to measure")
    if output is not None:
        write_records(output, [record])
    if as_json:
        print_json([asdict(record)])
    else:
        _print(record)


@dataclass(frozen=True)
class _Lengths:
    prompt_tokens: int | None
    output_tokens: int | None
    repetitions: int


def _measure_model(model: str, lengths: _Lengths, loading: LoadOptions) -> Record:
    from martlet.bench.measure import Workload, measure
    from martlet.engine.load_options import LoadOptions as EngineLoadOptions

    workload = Workload(
        lengths.prompt_tokens or _MODEL_PROMPT_TOKENS,
        lengths.output_tokens or _MODEL_OUTPUT_TOKENS,
        lengths.repetitions,
    )
    locate_model(model)
    with Meter("measuring") as meter:
        return measure(
            model,
            EngineLoadOptions(**loading.arguments()),
            workload,
            _command_line(),
            meter.update,
        )


def _measure_shape(
    name: str, protocol: str | None, batch: int, lengths: _Lengths, loading: LoadOptions
) -> Record:
    from martlet.bench.measure_shape import default_protocol, measure_shape, workload_of
    from martlet.bench.opening import Setting
    from martlet.bench.shapes import find_shape

    shape = find_shape(name)
    protocol = protocol or default_protocol(shape)
    workload = workload_of(
        protocol, lengths.prompt_tokens, lengths.output_tokens, lengths.repetitions, batch
    )
    setting = Setting(
        quantize=loading.quantize or "int8",
        device=loading.device,
        gpu_memory_bytes=loading.gpu_memory,
        ram_bytes=loading.ram,
        num_threads=loading.threads,
        kv_cache=loading.kv_cache,
    )
    with Meter("measuring") as meter:
        return measure_shape(shape, setting, workload, protocol, _command_line(), meter.update)


def _command_line() -> str:
    return shlex.join(["martlet", *sys.argv[1:]])


def _print(record: Record) -> None:
    share, ceiling = record.share_of_limit, record.copy_ceiling_bytes_per_second
    limit = f"{share:.0%}" if share else "not measured"
    if share and ceiling and not record.streamed_bytes_per_token:
        limit += f" of {ceiling / 1e9:.1f} GB/s"
    cache = "" if record.kv_cache == "none" else f", KV cache {record.kv_cache}"
    lines = [
        ("model", f"{record.shape}, {record.quantize}{cache}"),
        ("device", record.device),
        ("threads", f"{record.num_threads}, {record.decode_threads} for single tokens"),
        ("decode", f"{record.decode_tokens_per_second:,.1f} tokens/s"),
        ("prefill", f"{record.prefill_tokens_per_second:,.0f} tokens/s"),
        ("first token", duration(record.time_to_first_token_seconds)),
        ("weights read", f"{format_bytes(record.weight_bytes_per_token)} a token"),
        ("share of limit", limit),
        ("peak memory", format_bytes(record.peak_process_bytes)),
        ("load", duration(record.load_seconds)),
    ]
    if record.streamed_bytes_per_token:
        lines.append(("streamed", f"{format_bytes(record.streamed_bytes_per_token)} a token"))
    if record.pcie_bytes_per_second:
        lines.append(("link", f"{record.pcie_bytes_per_second / 1e9:.1f} GB/s"))
    if record.peak_gpu_process_bytes is not None:
        lines.append(("peak GPU memory", format_bytes(record.peak_gpu_process_bytes)))
    for name, value in lines:
        print_text(f"{name:<15} {value}")
