"""Files that tell what was done, written after hours of work and checked before them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet.errors import UsageError

__all__ = ["check_folder_of", "write_report"]


def check_folder_of(path: str | Path | None) -> None:
    """Say before the work that a file cannot be written after it; None is no file.

    Raises:
        UsageError: its folder does not exist.
    """
    if path is not None and not Path(path).absolute().parent.is_dir():
        raise UsageError(f"{path}: its folder does not exist; make it or choose another")


def write_report(path: str | Path | None, report: Mapping[str, Any]) -> None:
    """Write a report as JSON; None is no file."""
    if path is not None:
        text = json.dumps(report, ensure_ascii=False, indent=1)
        Path(path).write_text(text + "\n", encoding="utf-8")
