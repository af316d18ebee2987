"""martlet pull: a model from the hub."""

from __future__ import annotations

import time

import click

from martlet.cli.fetching import PullMeter
from martlet.cli.options import TEXT, as_json
from martlet.cli.output import duration, print_json, print_text
from martlet.device.size import format_bytes

__all__ = ["command"]


@click.command("pull")
@click.argument("model", type=TEXT)
@as_json
def command(model: str, as_json: bool) -> None:
    """Fetch MODEL from the Hugging Face hub, or what is new of it.

    MODEL is ORG/NAME, with @REVISION for a branch, a tag or a commit; of a repository with GGUF
    files :Q4_K_M or a file's name says which (else Q4_K_M, Q8_0 or the only one). Safetensors,
    config and tokenizer are fetched, pickles and code never. Every file is verified by its hash;
    an interrupted pull goes on where it was. HF_HOME, HF_ENDPOINT (mirrors), HF_TOKEN and the
    hub's other variables hold.
    """
    from martlet.hub.locate import pull_model

    start = time.monotonic()
    with PullMeter(model) as meter:
        plan = pull_model(model, progress=meter.update, announce=meter.announce)
    seconds = time.monotonic() - start
    if as_json:
        print_json(
            {
                "model": model,
                "path": str(plan.path),
                "commit": plan.commit,
                "total_bytes": plan.total_bytes,
                "fetched_bytes": plan.missing_bytes,
                "seconds": seconds,
                "files": [
                    {"name": file.name, "size_bytes": file.size_bytes, "etag": file.etag}
                    for file in plan.files
                ],
                "left_out": list(plan.left_out),
            }
        )
        return
    if not plan.missing_bytes:
        print_text(f"{plan.path}: {format_bytes(plan.total_bytes)}, is up to date")
        return
    print_text(
        f"{plan.path}: {format_bytes(plan.total_bytes)} in {len(plan.files)} files, verified; "
        f"{format_bytes(plan.missing_bytes)} fetched in {duration(seconds)}"
    )
