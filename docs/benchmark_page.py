"""The measured part of docs/benchmarks.md, from the rows of benchmarks/results/h200.json."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import Any

__all__ = ["PLOT", "headline", "memory_bytes", "plotted", "render"]

Row = dict[str, Any]

PLOT = "images/tokens-per-memory.svg"
_PLOTTED = {"shape": "cpm2-11b", "quantize": "int8", "protocol": "bminf", "batch": 1, "peer": None}
_SAME = ("shape", "protocol", "device", "gpu_memory_budget_bytes")
_COLUMNS = ("program", "batch", "budget", "peak", "decode", "share", "predicted", "streamed")
_TIMES = ("encode", "first", "load")


def render(rows: Iterable[Row], words: dict[str, str], folder: str = "") -> str:
    """Tables, one for each shape and protocol, and the plot where there is enough for one.

    ``folder`` leads from the page to docs/.
    """
    rows = sorted(rows, key=_order)
    if not rows:
        return words["none"]
    parts = []
    if len(plotted(rows)) > 1:
        parts += [f"![{words['plot']}]({folder}{PLOT})", ""]
    for (shape, protocol), group in groupby(rows, key=lambda r: (r["shape"], r["protocol"])):
        parts += [f"### {shape}, {words[protocol]}", "", *_table(list(group), words), ""]
    parts += [words["where"].format(**_machine(rows)), ""]
    parts += [words["commands"], "", "```text", *sorted({_command(row) for row in rows}), "```"]
    return "\n".join(parts)


def headline(rows: Iterable[Row], words: dict[str, str]) -> str:
    """One line: where int4 gains most over int8 in the same memory; "" where nothing tells."""
    rows = [row for row in rows if row["batch"] == 1 and row["peer"] is None]
    pairs = [
        (half, whole)
        for half in rows
        for whole in rows
        if half["quantize"].startswith("int4")
        and whole["quantize"] == "int8"
        and half["gpu_memory_budget_bytes"] is not None
        and all(half[name] == whole[name] for name in _SAME)
    ]
    if not pairs:
        return ""
    half, whole = max(pairs, key=lambda pair: _speed(pair[0]) / _speed(pair[1]))
    return words["half"].format(
        shape=half["shape"],
        format=half["quantize"],
        device=half["device"],
        budget=f"{half['gpu_memory_budget_bytes'] / 2**30:g} GiB",
        speed=_speed(half),
        whole=_speed(whole),
        commit=half["commit"],
    )


def _speed(row: Row) -> float:
    return float(row["decode_tokens_per_second"])


def plotted(rows: Iterable[Row]) -> list[Row]:
    """The rows that the plot shows, least memory first."""
    chosen = [r for r in rows if all(r[name] == value for name, value in _PLOTTED.items())]
    placed = [row for row in chosen if memory_bytes(row) is not None]
    return sorted(placed, key=lambda row: memory_bytes(row) or 0)


def memory_bytes(row: Row) -> int | None:
    """The budget; where there was none, what was used."""
    budget: int | None = row["gpu_memory_budget_bytes"] or row["peak_gpu_process_bytes"]
    return budget


def _order(row: Row) -> tuple[Any, ...]:
    budget = row["gpu_memory_budget_bytes"]
    return (
        row["shape"],
        row["protocol"],
        row["peer"] or "",
        row["quantize"],
        row["batch"],
        budget is not None,
        -(budget or 0),
    )


def _table(rows: list[Row], words: dict[str, str]) -> list[str]:
    heads = [words[name] for name in (*_COLUMNS, *_TIMES)]
    lines = [heads, ["---"] * len(heads), *(_cells(row, words) for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _cells(row: Row, words: dict[str, str]) -> list[str]:
    program = "Martlet" if row["peer"] is None else f"{row['peer']} {row['peer_version']}"
    predicted = row["predicted_seconds_per_token"]
    streamed = row["streamed_bytes_per_token"]
    budget = row["gpu_memory_budget_bytes"]
    return [
        f"{program}, {row['quantize']}",
        str(row["batch"]),
        words["unlimited"] if budget is None else _gib(budget),
        _gib(row["peak_gpu_process_bytes"]),
        f"{row['decode_tokens_per_second']:,.1f}",
        _or_dash(row["share_of_limit"], "{:.0%}"),
        "–" if predicted is None else f"{row['batch'] / predicted:,.1f}",
        f"{streamed / 1e9:.2f} GB" if streamed else "–",
        _milliseconds(row["encode_seconds"]),
        _milliseconds(row["time_to_first_token_seconds"]),
        f"{row['load_seconds']:.1f} s",
    ]


def _machine(rows: list[Row]) -> dict[str, str]:
    """What the rows have in common; every different value is named."""
    named = {name: ", ".join(sorted({str(row[name]) for row in rows})) for name in ("device",)}
    commits = sorted({str(row["commit"]) for row in rows if row["peer"] is None})
    copies = [
        r["copy_ceiling_bytes_per_second"] for r in rows if r["copy_ceiling_bytes_per_second"]
    ]
    links = [r["pcie_bytes_per_second"] for r in rows if r["pcie_bytes_per_second"]]
    return {
        **named,
        "commit": ", ".join(commits),
        "copy": _range(copies),
        "link": _range(links),
    }


def _range(speeds: list[float]) -> str:
    """Gigabytes per second, as one number or as the range of all runs."""
    if not speeds:
        return "–"
    low, high = (f"{speed / 1e9:,.0f}" for speed in (min(speeds), max(speeds)))
    return low if low == high else f"{low}–{high}"


def _command(row: Row) -> str:
    return str(row["command"])


def _gib(num_bytes: int | None) -> str:
    return "–" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1000 * seconds:,.1f} ms"


def _or_dash(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)
