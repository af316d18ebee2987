"""Machine code for a GPU or this processor that was compiled before, in the user's cache folder.

Whatever goes wrong with a file only means that the code is compiled again (``user_cache``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from martlet.device.user_cache import read_cached, user_cache_folder, write_cached

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
    folder = user_cache_folder()
    return None if folder is None else read_cached(_path(folder, key, suffix))


def write_code(key: str, code: bytes, suffix: str = ".cubin") -> None:
    """Keep machine code for later processes, where the folder can be written."""
    folder = user_cache_folder()
    if folder is not None:
        write_cached(_path(folder, key, suffix), code)


def _path(folder: Path, key: str, suffix: str) -> Path:
    return folder / "kernels" / f"{key}{suffix}"
