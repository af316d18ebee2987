"""From SentencePiece's scores to the merges of a tokenizer.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from martlet.errors import VocabularyError

__all__ = ["merges_by_score"]

# Far above real vocabularies, low enough that a hostile one costs seconds at most.
_MAX_CHARACTERS = 4 << 20
_MAX_PIECE_CHARACTERS = 256


def merges_by_score(scores: Mapping[str, float], path: Path) -> list[list[str]]:
    """All pairs of pieces that make a piece, those of the best piece first.

    SentencePiece joins, of all neighbours, those that give the piece with the best score. Of pairs
    that make the same piece, the one with the longer left part comes first: text is read from the
    left, so what stands there has grown first.

    Args:
        scores: of the ordinary pieces.
        path: where they come from, for messages.

    Raises:
        VocabularyError: the pieces are too long to be cut in every way.
    """
    characters = sum(map(len, scores))
    if characters > _MAX_CHARACTERS or max(map(len, scores), default=0) > _MAX_PIECE_CHARACTERS:
        raise VocabularyError(
            f"{path}: pieces of {characters:,} characters; the limits are "
            f"{_MAX_CHARACTERS:,} for all and {_MAX_PIECE_CHARACTERS} for one"
        )
    pairs = []
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        pairs += [
            [piece[:cut], piece[cut:]]
            for cut in range(len(piece) - 1, 0, -1)
            if piece[:cut] in scores and piece[cut:] in scores
        ]
    return pairs
