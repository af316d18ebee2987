"""Machine code for a GPU or this processor that was compiled before, in the user's cache folder.

A file is the SHA-256 of the code and then the code. Whatever goes wrong with one (cut short,
not ours, not readable, a full disk) only means that the code is compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

import platformdirs

__all__ = ["cache_key", "read_code", "write_code"]


def cache_key(parts: Iterable[str]) -> str:
    """A file name that any change of any part changes."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        # The length first: ("ab", "c") is not ("a", "bc").
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def read_code(key: str, suffix: str = ".cubin") -> bytes | None:
    """What ``write_code`` kept under this key; None where there is nothing sound."""
    path = _path(key, suffix)
    if path is None:
        return None
    try:
        data = path.read_bytes()
    except OSError:
        return None
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def write_code(key: str, code: bytes, suffix: str = ".cubin") -> None:
    """Keep machine code for later processes, where the folder can be written."""
    path = _path(key, suffix)
    if path is None:
        return
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(code).digest() + code)
            # At once: no process that runs beside this one sees half a file.
            Path(name).replace(path)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def _path(key: str, suffix: str) -> Path | None:
    try:
        folder = platformdirs.user_cache_path("martlet", appauthor=False)
    except (OSError, RuntimeError):  # no home directory
        return None
    return folder / "kernels" / f"{key}{suffix}"
