"""The table of docs/models.md: how far logits are from those of transformers, from oracle.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["render"]

Row = dict[str, Any]

ROUTES = ("whole", "steps", "device steps", "batch", "long", "bfloat16", "int8")
_PEER = "bfloat16 of transformers"


def render(rows: Iterable[Row], words: dict[str, str]) -> str:
    """The table and where it comes from; "" without rows."""
    rows = list(rows)
    if not rows:
        return ""
    errors: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        errors.setdefault((row["family"], row["variant"]), {})[row["route"]] = row["error"]
    heads = [words["family"], words["variant"], *(words[route] for route in ROUTES)]
    lines = [heads, ["---"] * len(heads)]
    for (family, variant), by_route in errors.items():
        cells = [_cell(by_route, route) for route in ROUTES]
        named = words["joint"].join(words.get(part, part) for part in variant.split(", "))
        lines.append([f"`{family}`", named, *cells])
    commands = dict.fromkeys(row["command"] for row in rows)
    where = {
        name: ", ".join(dict.fromkeys(row[name] for row in rows))
        for name in ("torch", "transformers", "commit")
    }
    return "\n".join(
        [
            *("| " + " | ".join(line) + " |" for line in lines),
            "",
            words["where"].format(**where),
            "",
            "```sh",
            *commands,
            "```",
        ]
    )


def _cell(errors: dict[str, float], route: str) -> str:
    if route not in errors:
        return "–"
    if route == "bfloat16":
        return f"{errors[route]:.1%} ({errors[_PEER]:.1%})"
    return (
        f"{errors[route]:.1%}" if route == "int8" else f"{errors[route]:.0e}".replace("e-0", "e-")
    )
