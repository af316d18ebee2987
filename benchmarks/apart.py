"""Measurements in processes of their own, and the files that keep their rows."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
Row = dict[str, Any]


def run(arguments: Sequence[str], timeout: float) -> tuple[str | None, str]:
    """What a Python program with these arguments prints, or None and why it failed.

    It runs from the sources of this tree, and its peak memory is its own.
    """
    paths = (str(ROOT / "src"), os.environ.get("PYTHONPATH"))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    try:
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"took longer than {timeout:.0f} s"
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        return None, f"exit {done.returncode}: " + " | ".join(lines[-3:])
    return done.stdout.decode(), ""


def store(path: Path, row: Row, identity: Sequence[str]) -> None:
    """Put a row in the place of the one that measured the same, or behind all others."""
    rows: list[Row] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    wanted = [row[name] for name in identity]
    for index, old in enumerate(rows):
        if [old[name] for name in identity] == wanted:
            rows[index] = row
            break
    else:
        rows.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(rows, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    partial.replace(path)
