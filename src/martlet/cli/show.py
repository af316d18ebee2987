"""martlet show: what a model consists of."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from martlet.cli.fetching import locate_model
from martlet.cli.options import TEXT, as_json, offline_option
from martlet.cli.output import print_json, print_text
from martlet.device.size import format_bytes

if TYPE_CHECKING:
    from martlet.checkpoint.planned import PlannedWeight
    from martlet.engine.model_files import ModelFiles

__all__ = ["command"]

_CARD_NAMES = ("MODEL_CARD.md", "README.md")


@click.command("show")
@click.argument("model", type=TEXT)
@offline_option
@as_json
def command(model: str, as_json: bool) -> None:
    """Show what MODEL consists of: family, size, blocks, tokenizer, configuration."""
    path = locate_model(model)
    # Imports torch, which one that waits for a bar need not wait for first.
    from martlet.api.opening import open_files

    facts = describe(model, open_files(path))
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
        (
            "weights",
            f"{format_bytes(facts['weight_bytes'])}, quantize {facts['quantize']}, "
            f"{facts['bits_per_weight']:.2f} bits a weight"
            + (f", loaded as {facts['loaded_as']}" if facts["loaded_as"] else ""),
        ),
        ("formats", _formats(facts)),
        ("context", f"{facts['context_tokens']:,} tokens" if facts["context_tokens"] else "any"),
        ("blocks", _summary(facts["blocks"])),
        (
            "tokenizer",
            f"{tokenizer['kind']} ({', '.join(tokenizer['files'])})" if tokenizer else "none",
        ),
        ("chat template", "yes" if facts["has_chat_template"] else "no"),
        ("licence", facts["licence"] or "not told"),
        ("model card", facts["model_card"] or "none"),
    ):
        print_text(f"{name:<13} {value}")
    for title in ("compression", "config"):
        if facts[title]:
            print_text({"config": "configuration"}.get(title, title))
        for name, value in sorted(facts[title].items()):
            print_text(f"  {_line(name)}: {_line(value)}")


def describe(name: str, files: ModelFiles) -> dict[str, Any]:
    """All facts about a model's files, as JSON has them."""
    from martlet.compression.recipe import bits_per_weight
    from martlet.hub.licence import read_licence
    from martlet.models.config import load_architecture
    from martlet.models.family import TASKS_OF_FAMILY

    blocks = {block: files.block_weights(block) for block in files.block_names}
    weights = [weight for block in blocks.values() for weight in block]
    tokenizer = files.tokenizer_files
    folder = files.location if files.location.is_dir() else files.location.parent
    card = next((str(folder / card) for card in _CARD_NAMES if (folder / card).is_file()), None)
    has_chat_template = files.chat_template() is not None
    tasks = TASKS_OF_FAMILY.get(files.family, ())
    return {
        "model": name,
        "path": str(files.location),
        "family": files.family,
        "tasks": list(dict.fromkeys((*(["chat"] if has_chat_template else []), *tasks))),
        "quantize": files.quantize,
        "loaded_as": files.usual_quantize,
        "context_tokens": load_architecture(files.config, files.location).max_positions,
        "has_chat_template": has_chat_template,
        "licence": read_licence(files.location),
        "parameters": sum(weight.numel for weight in weights),
        "bits_per_weight": bits_per_weight(weights),
        "formats": _by_format(weights),
        "compression": dict(files.compression),
        "weight_bytes": files.nbytes,
        "blocks": [
            {
                "name": name,
                "nbytes": sum(weight.nbytes for weight in block),
                "parameters": sum(weight.numel for weight in block),
            }
            for name, block in blocks.items()
        ],
        "tokenizer": tokenizer and {"kind": tokenizer[0], "files": list(tokenizer[1])},
        "generation": dict(files.generation),
        "config": dict(files.config),
        "model_card": card,
    }


def _by_format(weights: Sequence[PlannedWeight]) -> list[dict[str, Any]]:
    """For each format, the one of most weights first: how many tensors, weights and bytes."""
    formats: dict[str, dict[str, Any]] = {}
    for weight in weights:
        name = weight.format.name if weight.format else str(weight.form).removeprefix("torch.")
        entry = formats.setdefault(
            name, {"format": name, "tensors": 0, "parameters": 0, "nbytes": 0}
        )
        entry["tensors"] += 1
        entry["parameters"] += weight.numel
        entry["nbytes"] += weight.nbytes
    return sorted(formats.values(), key=lambda entry: -int(entry["parameters"]))


def _formats(facts: dict[str, Any]) -> str:
    """Shares of the weights: "int4-g64 92.13 % (48 tensors), float16 0.07 % (26 tensors)"."""
    return ", ".join(
        f"{entry['format']} {100 * entry['parameters'] / facts['parameters']:.2f} % "
        f"({entry['tensors']:,} tensors)"
        for entry in facts["formats"]
    )


def _line(value: object) -> str:
    """A value of a JSON object on one line."""
    if isinstance(value, str):
        return value if value.isprintable() else json.dumps(value)
    return json.dumps(value, ensure_ascii=False)


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
