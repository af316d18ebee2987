"""What a piece of a vocabulary is for."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["PieceKind"]


class PieceKind(IntEnum):
    """As SentencePiece numbers what a piece is, and GGUF after it."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6
