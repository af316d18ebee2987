"""martlet list: the models that can be called by name."""

from __future__ import annotations

from dataclasses import asdict

import click

from martlet.cli.options import as_json
from martlet.cli.output import note, print_json, print_table
from martlet.device.size import format_bytes

__all__ = ["command"]


@click.command("list")
@as_json
def command(as_json: bool) -> None:
    """List the models that are here: bundled, in the models directory, in the hub's cache."""
    from martlet.hub.catalogue import Catalogue, list_models

    entries = list_models()
    if as_json:
        print_json([{**asdict(entry), "path": str(entry.path)} for entry in entries])
        return
    if not entries:
        note("no models here; fetch one with `martlet pull ORG/NAME`")
        return
    rows = [("name", "family", "task", "weights", "size", "from")]
    for entry in entries:
        rows.append(
            (
                entry.name,
                entry.family or "?",
                entry.task or "?",
                {"none": "float"}.get(entry.quantize or "?", entry.quantize or "?"),
                "?" if entry.size_bytes is None else format_bytes(entry.size_bytes),
                entry.origin,
            )
        )
    print_table(rows, right=[4])
    for entry in entries:
        if entry.problem:
            note(f"{entry.name} cannot be loaded: {entry.problem}")
    note(f"what lies in {Catalogue().models_dir} has a name too; any other model by its path")
