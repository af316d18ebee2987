"""Files in the user's cache folder that are made anew at any time.

A file is the SHA-256 of what it holds and then that. Whatever goes wrong with one (cut short, not
ours, not readable, a full disk) only means that it is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import platformdirs

__all__ = ["read_cached", "user_cache_folder", "write_cached"]


def user_cache_folder() -> Path | None:
    """Martlet's folder among the user's caches, None without a home directory."""
    try:
        return platformdirs.user_cache_path("martlet", appauthor=False)
    except (OSError, RuntimeError):
        return None


def read_cached(path: Path) -> bytes | None:
    """What ``write_cached`` put there; None where there is nothing sound."""
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, content = data[:32], data[32:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_cached(path: Path, content: bytes) -> None:
    """Keep something for later processes, where the folder can be written."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).digest() + content)
            # At once: no process that runs beside this one sees half a file.
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise
