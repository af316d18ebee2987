"""martlet adapt: lets a compressed model fit its precision, with the float model as example."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from martlet.cli.fetching import locate_model
from martlet.cli.options import TEXT, as_json, device_options
from martlet.cli.output import duration, peak_memory, print_json, print_text
from martlet.cli.progress import Meter

if TYPE_CHECKING:
    from martlet.api.adapting import AdaptationReport

__all__ = ["command"]

_Command = TypeVar("_Command", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)
# What martlet.adapt takes by itself; all other options are of AdaptationOptions.
_OWN = ("teacher", "data", "format", "gpu_memory", "ram", "device", "overwrite", "report")


def _number(name: str, default: float, text: str) -> Callable[[_Command], _Command]:
    """An option of ``AdaptationOptions``, which checks the range."""
    kind = int if isinstance(default, int) else float
    letter = "N" if kind is int else "X"
    return click.option(
        f"--{name}", type=kind, default=default, show_default=True, metavar=letter, help=text
    )


@click.command("adapt")
@click.argument("model", metavar="MODEL", type=TEXT)
@click.argument("dst", metavar="DST", type=_PATH)
@click.option("--teacher", type=TEXT, metavar="FLOAT_MODEL", help="The model it was made of.")
@click.option("--data", type=_PATH, metavar="FILE", required=True, help="UTF-8 text to train on.")
@click.option(
    "--format", "format", type=TEXT, help="Round a float MODEL to this format first, as int4-g128."
)
@_number("iterations", 2000, "From end to end; 0 trains blocks alone.")
@_number("block-iterations", 200, "Of each block by itself; 0 trains from end to end alone.")
@_number("learning-rate", 1e-3, "Relative change of scales in an iteration from end to end.")
@_number("block-learning-rate", 1e-3, "The same in an iteration of a block.")
@_number("rounding-rate", 0.01, "Integer steps that a weight moves in an iteration of its block.")
@_number("batch-size", 8, "Samples in an iteration from end to end.")
@_number("rows-at-once", 4, "Samples that go through a block together.")
@_number("samples", 512, "Pieces of the text.")
@_number("sample-tokens", 512, "Tokens of a piece, at most.")
@_number("held-out", 0.125, "Share of the samples by which the best state is chosen.")
@_number("top-k", 128, "Tokens of each prediction of the teacher that are kept.")
@_number("cross-entropy", 0.0, "Share of the text's own next tokens in the loss.")
@_number("seed", 0, "Decides which pieces of the text are taken, and their order.")
@device_options
@click.option("--report", type=_PATH, metavar="FILE.json", help="Write errors and loss curve.")
@click.option("--overwrite", is_flag=True, help="Replace DST if it is a model folder.")
@as_json
def command(model: str, dst: Path, as_json: bool, **options: Any) -> None:
    """Train back into the compressed MODEL what it has lost, and write the result to DST.

    Every block learns to give what the float model's block gives; then scales, norms and biases
    are trained from end to end towards what the float model predicts. One block at a time is in
    memory where the whole model does not fit. Interrupted work goes on when the same command is
    given again; DST appears whole or not at all.
    """
    from martlet.api.adapting import adapt
    from martlet.api.adapting_options import AdaptationOptions

    own = {name: options.pop(name) for name in _OWN}
    for name in (model, own["teacher"]):
        if name is not None:
            locate_model(str(name))
    with Meter("adapting", has_lines_of_detail=True) as meter:
        report = adapt(
            model, dst, options=AdaptationOptions(**options), progress=meter.update, **own
        )
    if as_json:
        print_json(report.to_json())
    else:
        print_text(_summary(report))


def _summary(report: AdaptationReport) -> str:
    peaks = peak_memory(report.peak_rss_bytes, report.peak_gpu_bytes)
    what = {"start": "nothing helped", "blocks": "blocks trained", "tuned": "tuned end to end"}
    return (
        f"{report.path}: {report.family}, {what[report.kept]}, loss to the float model "
        f"{report.loss_start:.4f} -> {report.loss_end:.4f} nats a token, "
        f"{report.num_tokens:,} tokens, {report.iterations:,} iterations on {report.device} in "
        f"{report.dtype}, {duration(report.seconds)} (peak memory {peaks})"
    )
