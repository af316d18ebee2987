"""martlet perplexity: how well a model predicts a text."""

from __future__ import annotations

import time
from pathlib import Path

import click

from martlet.cli.answer import load_model
from martlet.cli.options import LoadOptions, as_json, load_options, model_argument
from martlet.cli.output import note, print_json, print_text
from martlet.cli.progress import Meter
from martlet.errors import UsageError

__all__ = ["command", "read_text"]


@click.command("perplexity")
@model_argument
@click.argument("file", type=click.Path(path_type=Path))
@as_json
@load_options
def command(model: str, file: Path, as_json: bool, loading: LoadOptions) -> None:
    """Measure how well MODEL predicts the text in FILE: bits per character and perplexity.

    FILE is UTF-8 text. A decoder-only model reads it in windows that overlap by half; an
    encoder-decoder model predicts it piece by piece from what stands before. The first token
    (the first piece of context) is not scored.
    """
    text = read_text(file)
    loaded = load_model(model, loading)
    start = time.perf_counter()
    with Meter("scoring") as meter:
        score = loaded.score_text(text, progress=meter.update)
    seconds = time.perf_counter() - start
    if as_json:
        print_json(
            {
                "model": model,
                "file": str(file),
                "bits_per_character": score.bits_per_character,
                "perplexity": score.perplexity,
                "tokens": score.num_tokens,
                "characters": score.num_characters,
                "unknown_tokens": score.num_unknown_tokens,
                "seconds": seconds,
            }
        )
        return
    print_text(f"bits per character    {score.bits_per_character:.4f}")
    print_text(f"perplexity per token  {score.perplexity:.2f}")
    print_text(f"tokens                {score.num_tokens:,} ({score.num_unknown_tokens:,} unknown)")
    print_text(f"characters            {score.num_characters:,}")
    note(f"{score.num_tokens / seconds:,.0f} tokens/s; {loaded.plan.describe()}")


def read_text(file: Path) -> str:
    """The text of a file.

    Raises:
        UsageError: the file is missing, unreadable, empty or not UTF-8.
    """
    try:
        raw = file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file} is not UTF-8 text: byte 0x{raw[error.start]:02x} at offset "
            f"{error.start:,}; convert it first, e.g. with `iconv -f GB18030 -t UTF-8`"
        ) from error
    if not text.strip():
        raise UsageError(f"{file} is empty; there is nothing to measure")
    return text
