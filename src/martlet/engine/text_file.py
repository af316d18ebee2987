"""A text from a file, with its digest."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from martlet.errors import UsageError

__all__ = ["TextFile", "read_text_file"]


@dataclass(frozen=True)
class TextFile:
    """The text of a file; ``sha256`` is of its bytes."""

    path: Path
    text: str
    sha256: str


def read_text_file(path: Path, what: str) -> TextFile:
    """A UTF-8 file, with or without a byte order mark; ``what`` is what errors call it.

    Raises:
        UsageError: it is missing, unreadable, empty or not UTF-8.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{what} {path} cannot be read: {error.strerror}") from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{what} {path} is not UTF-8 text: byte 0x{raw[error.start]:02x} at offset "
            f"{error.start:,}; convert it first, e.g. with `iconv -f GB18030 -t UTF-8`"
        ) from error
    if not text.strip():
        raise UsageError(f"{what} {path} is empty; give a text like those the model is for")
    return TextFile(path, text, hashlib.sha256(raw).hexdigest())
