"""What was typed in earlier sessions, in a file that only its owner can read."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path

import platformdirs

__all__ = ["NO_HISTORY", "History", "history_path"]

NO_HISTORY = "MARTLET_NO_HISTORY"
"""Environment variable: anything but nothing and 0 keeps no history."""

_LARGEST_FILE_BYTES = 1 << 20
_LARGEST_ENTRY_CHARACTERS = 1 << 15
_MOST_ENTRIES = 1000


def history_path() -> Path | None:
    """The file in the user's state folder; None where no history is wanted or there is no home."""
    if os.environ.get(NO_HISTORY, "0") not in ("", "0"):
        return None
    try:
        return platformdirs.user_state_path("martlet", appauthor=False) / "history"
    except (OSError, RuntimeError):
        return None


class History:
    """Entries of this session and of those before it, the newest last.

    The file has one JSON string a line, since an entry may have several lines. It is appended to
    as entries come, so that sessions side by side lose nothing, and is cut to its newest entries
    when it is opened. A file that cannot be read or written is no reason to stop a session.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.entries: list[str] = []
        if path is not None:
            with contextlib.suppress(OSError):
                self.entries = _read(path)

    def add(self, entry: str) -> bool:
        """Keep an entry; False where it is the same as the last one."""
        if self.entries and self.entries[-1] == entry:
            return False
        self.entries.append(entry)
        if self._path is not None and len(entry) <= _LARGEST_ENTRY_CHARACTERS:
            with contextlib.suppress(OSError):
                _append(self._path, entry)
        return True


def _read(path: Path) -> list[str]:
    with path.open("rb") as file:
        size_bytes = file.seek(0, os.SEEK_END)
        start = max(0, size_bytes - _LARGEST_FILE_BYTES)
        file.seek(start)
        lines = file.read(_LARGEST_FILE_BYTES).splitlines()
    if start:
        del lines[0]  # its beginning was cut off
    entries = [entry for entry in map(_parsed, lines) if entry is not None]
    kept = entries[-_MOST_ENTRIES:]
    if start or len(entries) > 2 * _MOST_ENTRIES:
        _replace(path, kept)
    return kept


def _parsed(line: bytes) -> str | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, str) and "\0" not in entry else None


def _line(entry: str) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode(errors="replace")


def _append(path: Path, entry: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(descriptor, "ab") as file:
        os.fchmod(descriptor, 0o600)
        file.write(_line(entry))


def _replace(path: Path, entries: list[str]) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".history")  # readable by its owner
    try:
        with os.fdopen(handle, "wb") as file:
            # Half of what is allowed, or the next entry would have everything written anew.
            size_bytes, lines = 0, []
            for line in map(_line, reversed(entries)):
                size_bytes += len(line)
                if size_bytes > _LARGEST_FILE_BYTES // 2:
                    break
                lines.append(line)
            file.writelines(reversed(lines))
        Path(name).replace(path)
    except OSError:
        Path(name).unlink(missing_ok=True)
        raise
