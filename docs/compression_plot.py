"""Draw what formats of weights cost: bits for a weight against the change of the perplexity.

`make docs` runs this through generate_tables.py; it needs the extra [plot].
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["draw"]

Row = dict[str, Any]
# A colour for each method, as far as it has rows; a shape for each size of groups.
_COLOURS = {
    "nearest": "C0",
    "gptq": "C1",
    "scaled": "C2",
    "scaled+gptq": "C4",
    "adapted": "C3",
}
_SHAPES = {None: "s", 32: "o", 64: "D", 128: "^"}
_ALLOWED = 0.02


def draw(rows: list[Row], path: Path) -> None:
    """Write an SVG with a panel for each model and text; the same rows give the same file."""
    import matplotlib

    matplotlib.use("svg")
    # Without these every run would write other names and another date.
    matplotlib.rcParams["svg.hashsalt"] = "martlet"
    from matplotlib import pyplot

    models = list(dict.fromkeys(row["model"] for row in rows))
    texts = list(dict.fromkeys(row["text"] for row in rows))
    figure, panels = pyplot.subplots(
        len(texts),
        len(models),
        figsize=(1 + 2.9 * len(models), 1 + 2.4 * len(texts)),
        squeeze=False,
        sharex=True,
    )
    for line, text in zip(panels, texts, strict=True):
        for axes, model in zip(line, models, strict=True):
            chosen = [row for row in rows if (row["model"], row["text"]) == (model, text)]
            _draw_panel(axes, chosen)
            axes.set_title(f"{model}, {text}", fontsize=9)
    figure.supxlabel("bits for a weight, scales included", fontsize=9)
    figure.supylabel("perplexity against the float model, %", fontsize=9)
    used = list(dict.fromkeys(row["method"] for row in rows if row["method"]))
    figure.legend(handles=_legend(used), loc="outside upper center", ncols=5, fontsize=8)
    figure.tight_layout(rect=(0.01, 0.01, 1, 0.88 if len(texts) == 1 else 0.93))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _draw_panel(axes: Any, rows: list[Row]) -> None:
    """One model and one text; hollow points have zeros for their groups."""
    for row in rows:
        if row["method"] is None:
            continue
        colour = _COLOURS[row["method"]]
        axes.plot(
            row["bits_per_weight"],
            100 * row["perplexity_change"],
            _SHAPES[row["group_size"]],
            color=colour,
            markerfacecolor="none" if row["format"].endswith("-asym") else colour,
        )
    axes.axhline(0, color="0.3", linewidth=0.8)
    axes.axhline(100 * _ALLOWED, color="0.6", linewidth=0.8, linestyle="--")
    axes.grid(visible=True, alpha=0.3)
    axes.tick_params(labelsize=8)


def _legend(methods: list[str]) -> list[Any]:
    from matplotlib.lines import Line2D

    def mark(shape: str, colour: str, label: str, *, is_hollow: bool = False) -> Any:
        face = "none" if is_hollow else colour
        return Line2D([], [], linestyle="", marker=shape, color=colour, mfc=face, label=label)

    return [
        *(mark("o", _COLOURS[method], method) for method in _COLOURS if method in methods),
        mark("s", "0.3", "whole rows (int8)"),
        mark("o", "0.3", "groups of 32"),
        mark("^", "0.3", "groups of 128"),
        mark("o", "0.3", "with zeros", is_hollow=True),
        Line2D([], [], color="0.6", linestyle="--", linewidth=0.8, label=f"+{_ALLOWED:.0%}"),
    ]
