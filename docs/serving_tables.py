"""The measured part of docs/benchmarks.md about many texts at a time, from serving.json."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

__all__ = ["headline", "render"]

Row = dict[str, Any]

_COLUMNS = ("budget", "clients", "total", "gain", "one", "serving_first", "late", "gpu_peak")


def render(rows: Iterable[Row], words: dict[str, str]) -> str:
    """A table for each model and device, what was measured, and the commands; "" without rows."""
    rows = sorted(rows, key=_order)
    if not rows:
        return ""
    parts = []
    for (device, shape, quantize), group in groupby(rows, key=_subject):
        weights = words["float"] if quantize == "none" else quantize
        parts += [f"### {shape}, {weights}, {device}", "", *_table(list(group), words), ""]
    return "\n".join([*parts, *_where(rows, words)])


def headline(rows: Iterable[Row], words: dict[str, str]) -> str:
    """One line: where most clients gain most over one; "" where no setting has two loads."""
    rows = list(rows)
    gains = [(row, gain) for row in rows if (gain := _gain(row, rows)) is not None]
    if not gains:
        return ""
    row, gain = max(gains, key=lambda pair: pair[1])
    budget = row["gpu_memory_budget_bytes"]
    return words["headline"].format(
        shape=row["shape"],
        device=row["device"],
        budget="" if budget is None else words["within"].format(_gib(budget)),
        clients=row["num_clients"],
        total=row["total_tokens_per_second"],
        gain=gain,
        commit=row["commit"],
    )


def _subject(row: Row) -> tuple[str, str, str]:
    return row["device"], row["shape"], row["quantize"]


def _order(row: Row) -> tuple[Any, ...]:
    budget = row["gpu_memory_budget_bytes"]
    return (*_subject(row), budget is not None, -(budget or 0), row["num_clients"])


def _table(rows: list[Row], words: dict[str, str]) -> list[str]:
    # What a machine without a GPU has nothing to say of is left out.
    is_on_gpu = any(row["peak_gpu_process_bytes"] for row in rows)
    columns = [name for name in _COLUMNS if is_on_gpu or name not in ("budget", "gpu_peak")]
    lines = [[words[name] for name in columns], ["---"] * len(columns)]
    for row in rows:
        cells = _cells(row, rows, words)
        lines.append([cells[name] for name in columns])
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cells(row: Row, rows: list[Row], words: dict[str, str]) -> dict[str, str]:
    budget, peak = row["gpu_memory_budget_bytes"], row["peak_gpu_process_bytes"]
    gain = _gain(row, rows)
    return {
        "budget": words["unlimited"] if budget is None else _gib(budget),
        "clients": str(row["num_clients"]),
        "total": f"{row['total_tokens_per_second']:,.0f}",
        "one": f"{row['tokens_per_second_of_one']:,.1f}",
        "serving_first": f"{1000 * row['time_to_first_token_p50_seconds']:,.0f} ms",
        "late": f"{1000 * row['time_to_first_token_p95_seconds']:,.0f} ms",
        "gain": "–" if gain is None else f"{gain:.1f}×",
        "gpu_peak": "–" if peak is None else _gib(peak),
    }


def _gain(row: Row, rows: list[Row]) -> float | None:
    """How much more all clients get together than one alone, in the same setting."""
    if row["num_clients"] == 1:
        return None
    for other in rows:
        is_same = _subject(other) == _subject(row) and all(
            other[name] == row[name] for name in ("gpu_memory_budget_bytes", "num_slots")
        )
        if is_same and other["num_clients"] == 1:
            gain: float = row["total_tokens_per_second"] / other["total_tokens_per_second"]
            return gain
    return None


def _where(rows: list[Row], words: dict[str, str]) -> list[str]:
    def named(name: str) -> str:
        return ", ".join(sorted({str(row[name]) for row in rows}))

    measured = words["serving_where"].format(
        prompt=named("prompt_tokens"),
        output=named("output_tokens"),
        slots=named("num_slots"),
        commit=named("commit"),
    )
    commands = sorted({str(row["command"]) for row in rows})
    return [measured, "", words["commands"], "", "```text", *commands, "```"]


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
