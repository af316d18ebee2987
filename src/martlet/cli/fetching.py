"""Models of the hub on the command line: what will be fetched, and how far it is."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from martlet.cli.output import note
from martlet.cli.progress import Meter
from martlet.device.size import format_bytes

if TYPE_CHECKING:
    from martlet.hub.pull import PullPlan

__all__ = ["PullMeter", "locate_checkpoint", "locate_model"]

_NAMES_THAT_ARE_SHOWN = 6
_SECONDS_OF_THE_RATE = 3.0


def locate_model(model: str) -> Path:
    """Where a model lies; one of the hub that is not here is fetched, with a bar.

    Raises:
        ModelNotFoundError, DownloadError, DiskFullError: see ``martlet.hub.locate``.
    """
    from martlet.hub.locate import locate

    with PullMeter(model) as meter:
        return locate(model, progress=meter.update, announce=meter.announce)


def locate_checkpoint(source: str) -> Path:
    """A path as it is, whatever lies there; a name of the hub as ``locate_model``."""
    path = Path(source).expanduser()
    # os.path.exists says no where a name is no path at all.
    is_path = os.path.exists(path) or "/" not in source.partition(":")[0] or source[0] in "/.~"
    return path if is_path else locate_model(source)


class PullMeter:
    """Says what a pull fetches, and how far it is, how fast, and how long it will take."""

    def __init__(self, model: str) -> None:
        self._meter = Meter(f"fetching {model}", has_lines_of_detail=True)
        self._points: list[tuple[float, int]] = []
        self._here_bytes = 0
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> PullMeter:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def announce(self, plan: PullPlan) -> None:
        """Say what will be fetched and what is left out, then show the bar."""
        if not plan.missing_bytes:
            return
        size = format_bytes(plan.missing_bytes)
        here = self._here_bytes = plan.total_bytes - plan.missing_bytes
        note(
            f"fetching {plan.hub_id} at {plan.commit[:12]}: {len(plan.files)} files, {size}"
            + (f", {format_bytes(here)} more are here" if here else "")
            + f" ({_some([file.name for file in plan.files])})"
        )
        if plan.left_out:
            note(f"left out: {_some(plan.left_out)}")
        self._stack.enter_context(self._meter)

    def update(self, done_bytes: int, total_bytes: int, file: str) -> None:
        """How far it is."""
        now = time.monotonic()
        self._points.append((now, done_bytes))
        while now - self._points[0][0] > _SECONDS_OF_THE_RATE and len(self._points) > 2:
            self._points.pop(0)
        detail = f"{format_bytes(done_bytes)} of {format_bytes(total_bytes)}, {self._rate()}{file}"
        # What was here before says nothing about the time that the rest will take.
        fetched = max(0, done_bytes - self._here_bytes)
        self._meter.update(fetched, total_bytes - self._here_bytes, detail)

    def _rate(self) -> str:
        """Of the last seconds: "12.3 MiB/s, "."""
        (first, first_bytes), (last, last_bytes) = self._points[0], self._points[-1]
        if last - first <= 0 or last_bytes <= first_bytes:
            return ""
        return f"{format_bytes(int((last_bytes - first_bytes) / (last - first)))}/s, "


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_THAT_ARE_SHOWN])
    more = len(names) - _NAMES_THAT_ARE_SHOWN
    return shown + (f" and {more} more" if more > 0 else "")
