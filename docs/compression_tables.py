"""The measured part of docs/compression.md: a table for each model, from compression-minis.json."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["PLOT", "longest", "render"]

Row = dict[str, Any]

PLOT = "images/compression.svg"


def longest(rows: Iterable[Row]) -> list[Row]:
    """Of rows that say the same, those of the most tokens."""
    best: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        key = _subject(row)
        if key not in best or row["tokens"] > best[key]["tokens"]:
            best[key] = row
    return list(best.values())


def render(rows: Iterable[Row], words: dict[str, str], folder: str) -> str:
    """Plot and tables; ``folder`` is what leads from the page to docs/. "" without rows."""
    rows = longest(rows)
    if not rows:
        return ""
    parts = [f"![{words['plot']}]({folder}{PLOT})", ""]
    for model in dict.fromkeys(row["model"] for row in rows):
        chosen = [row for row in rows if row["model"] == model]
        parts += [f"### {model}", "", *_table(chosen, words), ""]
    commands = dict.fromkeys(row["command"] for row in rows)
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows))
    commits = ", ".join(dict.fromkeys(row["commit"] for row in rows))
    parts += [words["where"].format(device=devices, commit=commits), ""]
    return "\n".join([*parts, "```sh", *commands, "```"])


def _table(rows: list[Row], words: dict[str, str]) -> list[str]:
    """Lines are formats and methods, the columns of each text stand side by side."""
    texts = list(dict.fromkeys(row["text"] for row in rows))
    heads = [words["format"], words["method"], words["bits"]]
    for text in texts:
        tokens = max(row["tokens"] for row in rows if row["text"] == text)
        heads += [f"{words[text]} ({tokens:,})", words["kl"], words["top1"]]
    lines = [heads, ["---"] * len(heads)]
    for name in dict.fromkeys((row["format"], row["method"]) for row in rows):
        same = {row["text"]: row for row in rows if (row["format"], row["method"]) == name}
        bits = next(iter(same.values()))["bits_per_weight"]
        line = [words.get(name[0], name[0]), words.get(name[1] or "", name[1] or ""), f"{bits:.2f}"]
        for text in texts:
            line += _cells(same.get(text))
        lines.append(line)
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cells(row: Row | None) -> list[str]:
    if row is None:
        return ["–", "–", "–"]
    if row["method"] is None:
        return [f"{row['perplexity']:.2f}", "", ""]
    return [
        f"{round(row['perplexity_change'], 4) + 0.0:+.2%}",  # no -0.00 %
        f"{row['kl']:.5f}",
        f"{row['top1_agreement']:.1%}",
    ]


def _subject(row: Row) -> tuple[Any, ...]:
    return row["model"], row["format"], row["method"], row["text"]
