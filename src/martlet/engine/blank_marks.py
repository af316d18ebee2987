"""How blanks are written in a text. Needs no torch, so that a server splits texts without it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from martlet.errors import UsageError

__all__ = ["BLANK_MARKS", "count_blanks", "split_at_blanks"]

BLANK_MARKS = "<blank>, <span> or __"
_BLANK = re.compile(r"<blank>|<span>|[_＿]{2,}")


def split_at_blanks(text: str) -> list[str]:
    """The pieces of a text around its blanks: one more piece than blanks.

    A blank is written ``<blank>``, ``<span>``, or as two or more underscores, of any width, in a
    row.

    Raises:
        UsageError: there is no blank.
    """
    pieces = _BLANK.split(text)
    if len(pieces) < 2:
        raise UsageError(f"the text has no blank; write {BLANK_MARKS} where words are missing")
    return pieces


def count_blanks(text: object) -> int:
    """Blanks of a text or of the list of pieces around them; 0 for what is neither."""
    if isinstance(text, str):
        return len(_BLANK.findall(text))
    return max(0, len(text) - 1) if isinstance(text, Sequence) else 0
