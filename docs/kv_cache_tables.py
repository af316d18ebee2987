"""The tables about an int8 key/value cache in docs/compression.md, from kv-cache.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["render"]

Row = dict[str, Any]


def render(rows: Iterable[Row], words: dict[str, str]) -> str:
    """Both tables and where they come from; "" without rows."""
    rows = list(rows)
    if not rows:
        return ""
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows))
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    commands = dict.fromkeys(row["command"] for row in rows)
    parts = [
        *_by_model([row for row in rows if row["positions"] == "all"], words),
        "",
        words["kv positions"],
        "",
        *_by_position([row for row in rows if row["positions"] != "all"], words),
        "",
        words["kv where"].format(device=devices, commit=commits),
        "",
    ]
    return "\n".join([*parts, "```sh", *commands, "```"])


def _by_model(rows: list[Row], words: dict[str, str]) -> list[str]:
    heads = [words[k] for k in ("kv model", "kv tokens", "kv change", "kl", "top1", "kv error")]
    return _table(
        heads,
        [
            [
                f"`{row['model']}`",
                f"{row['num_tokens']:,}",
                "–" if row["perplexity_change"] is None else f"{row['perplexity_change']:+.3%}",
                f"{row['kl']:.6f}",
                f"{row['top1_agreement']:.1%}",
                f"{row['relative_logit_error']:.2%}",
            ]
            for row in rows
        ],
    )


def _by_position(rows: list[Row], words: dict[str, str]) -> list[str]:
    models = list(dict.fromkeys(row["model"] for row in rows))
    errors = {(row["model"], row["positions"]): row["relative_logit_error"] for row in rows}
    places = sorted({place for _, place in errors}, key=lambda place: int(place.split("-")[0]))
    return _table(
        [words["kv position"], *(f"`{model}`" for model in models)],
        [[place, *(_share(errors.get((model, place))) for model in models)] for place in places],
    )


def _share(error: float | None) -> str:
    return "–" if error is None else f"{error:.2%}"


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (heads, ["---"] * len(heads), *rows)]
