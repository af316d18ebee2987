"""martlet show: what a model consists of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from martlet.cli.options import TEXT, as_json
from martlet.cli.output import print_json, print_text
from martlet.device.size import format_bytes

if TYPE_CHECKING:
    from martlet.checkpoint.store import Store

__all__ = ["command"]

_CARD_NAMES = ("MODEL_CARD.md", "README.md")
_CARD_LINES = 12


@click.command("show")
@click.argument("model", type=TEXT)
@as_json
def command(model: str, as_json: bool) -> None:
    """Show what MODEL consists of: family, size, blocks, tokenizer, configuration."""
    from martlet.checkpoint.store import open_store
    from martlet.hub.catalogue import resolve

    facts = describe(model, open_store(resolve(model)))
    if as_json:
        print_json(facts)
        return
    tokenizer = facts["tokenizer"] or {"kind": "none", "files": []}
    for name, value in (
        ("model", facts["model"]),
        ("folder", facts["path"]),
        ("family", f"{facts['family']} (tasks: {', '.join(facts['tasks'])})"),
        ("architecture", facts["config"].get("model_type", "?")),
        ("parameters", f"{facts['parameters']:,}"),
        ("weights", f"{format_bytes(facts['weight_bytes'])}, quantize {facts['quantize']}"),
        ("blocks", _summary(facts["blocks"])),
        (
            "tokenizer",
            f"{tokenizer['kind']} ({', '.join(tokenizer['files'])})" if tokenizer else "none",
        ),
        ("model card", facts["model_card"] or "none"),
    ):
        print_text(f"{name:<13} {value}")
    print_text("configuration")
    for name, value in sorted(facts["config"].items()):
        print_text(f"  {name}: {value}")


def describe(name: str, store: Store) -> dict[str, Any]:
    """All facts about an opened model folder, as JSON has them."""
    from martlet.models.family import TASKS_OF_FAMILY

    tokenizer = store.tokenizer
    cards = (store.folder / card for card in _CARD_NAMES)
    card = next((str(path) for path in cards if path.is_file()), None)
    return {
        "model": name,
        "path": str(store.folder),
        "family": store.family,
        "tasks": list(TASKS_OF_FAMILY[store.family]),
        "quantize": store.quantize,
        "parameters": sum(_num_parameters(store, block) for block in store.block_names),
        "weight_bytes": store.nbytes,
        "blocks": [
            {
                "name": block,
                "nbytes": store.block_nbytes(block),
                "parameters": _num_parameters(store, block),
            }
            for block in store.block_names
        ],
        "tokenizer": tokenizer and {"kind": tokenizer.kind, "files": list(tokenizer.files)},
        "generation": store.generation,
        "config": store.config,
        "model_card": card,
    }


def _num_parameters(store: Store, block: str) -> int:
    """Weights of a block; scales and zeros of integers are not weights."""
    return sum(weight.numel for weight in store.block_weights(block))


def _summary(blocks: Sequence[dict[str, Any]]) -> str:
    """Bytes by kind of block: "fixed 7.1 MiB + 6 decoder x 0.8 MiB"."""
    groups: dict[str, list[int]] = {}
    for block in blocks:
        groups.setdefault(block["name"].partition(".")[0], []).append(block["nbytes"])
    return " + ".join(
        f"{kind} {format_bytes(sizes[0])}"
        if kind == "fixed"
        else f"{len(sizes)} {kind} x {format_bytes(max(sizes))}"
        for kind, sizes in groups.items()
    )
