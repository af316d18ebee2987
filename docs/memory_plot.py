"""Draw tokens per second against GPU memory, with what the machine allows and what was planned.

`make docs` runs this through generate_tables.py; it needs the extra [plot].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmark_page import memory_bytes

__all__ = ["draw"]

Row = dict[str, Any]


def draw(rows: list[Row], path: Path) -> None:
    """Write an SVG of rows that are in order of memory; the same rows give the same file."""
    import matplotlib

    matplotlib.use("svg")
    # Without these every run would write other names and another date.
    matplotlib.rcParams["svg.hashsalt"] = "martlet"
    from matplotlib import pyplot, ticker

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2))
    for label, style, points in _lines(rows):
        axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
    axes.set_xlabel("GPU memory budget of the process, GiB (the last point: no budget)")
    axes.set_ylabel("tokens per second, batch 1")
    axes.set_title(f"{rows[0]['shape']}, {rows[0]['quantize']}, {rows[0]['device']}")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(loc="lower right")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _lines(rows: list[Row]) -> list[tuple[str, str, list[tuple[float, float]]]]:
    """(label, style, points); lines without a point are left out."""
    measured, link, memory, planned = [], [], [], []
    for row in rows:
        place = (memory_bytes(row) or 0) / 2**30
        measured.append((place, row["decode_tokens_per_second"]))
        if row["streamed_bytes_per_token"] and row["pcie_bytes_per_second"]:
            link.append((place, row["pcie_bytes_per_second"] / row["streamed_bytes_per_token"]))
        if row["copy_ceiling_bytes_per_second"]:
            roof = row["copy_ceiling_bytes_per_second"] / row["weight_bytes_per_token"]
            memory.append((place, roof))
        if row["predicted_seconds_per_token"]:
            planned.append((place, 1 / row["predicted_seconds_per_token"]))
    lines = [
        ("PCIe, measured in the same runs", "C3--", link),
        ("device memory, measured in the same runs", "C2--", memory),
        ("the plan's prediction", "C1x:", planned),
        ("measured", "C0o-", measured),
    ]
    return [line for line in lines if line[2]]
