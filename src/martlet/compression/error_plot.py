"""The errors of all layers before and after, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from martlet.compression.compress_block import LayerReport
from martlet.errors import UsageError

__all__ = ["check_plot", "draw_errors"]

_SUFFIXES = (".svg", ".png")


def check_plot(path: Path) -> None:
    """Find out before the work whether a plot can be drawn into that file.

    Raises:
        UsageError: the name ends in no known format, or the extra is not installed.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"plot is {path}; its name must end in {' or '.join(_SUFFIXES)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise UsageError(
            "a plot needs matplotlib; install it with pip install 'martlet[plot]', "
            "or leave --plot out"
        ) from error


def draw_errors(layers: Sequence[LayerReport], title: str, path: Path) -> None:
    """Write a plot; the same layers give the same SVG."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Without these every run would write other names and another date.
    with rc_context({"svg.hashsalt": "martlet"}):
        figure = Figure(figsize=(9.0, 4.5))
        canvas = FigureCanvasSVG if path.suffix.lower() == ".svg" else FigureCanvasAgg
        canvas(figure)
        axes = figure.subplots()
        places = range(len(layers))
        before = [100 * layer.error_before for layer in layers]
        after = [100 * layer.error_after for layer in layers]
        axes.vlines(places, after, before, color="0.8")
        axes.plot(places, before, "C3.", label="nearest, ranges not searched")
        axes.plot(places, after, "C0.", label="as stored")
        axes.set_ylim(bottom=0)
        axes.set_xticks(list(places)[:: max(1, len(layers) // 40)])
        axes.set_xticklabels(
            [layer.name for layer in layers][:: max(1, len(layers) // 40)],
            rotation=90,
            fontsize=5,
        )
        axes.set_ylabel("relative error of the output, %")
        axes.set_title(title)
        axes.grid(visible=True, axis="y", alpha=0.3)
        axes.legend()
        figure.tight_layout()
        is_svg = path.suffix.lower() == ".svg"
        figure.savefig(path, metadata={"Date": None} if is_svg else None)
