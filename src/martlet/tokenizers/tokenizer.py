"""What every tokenizer offers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["SpecialTokens", "Tokenizer"]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that steer a model and are never shown; None where the vocabulary has none.

    ``sentinels`` are <s_0>, <s_1>, ... of the CPM-2 and EVA vocabularies (<extra_id_0>, ... of T5).
    ``eos`` ends a document: <eod> for CPM, <sep> for EVA, </s> for T5.
    """

    unk: int | None = None
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    sep: int | None = None
    mask: int | None = None
    sentinels: tuple[int, ...] = ()

    def control_ids(self) -> frozenset[int]:
        """All ids above: tokens that carry no text."""
        single = (self.unk, self.bos, self.eos, self.pad, self.sep, self.mask)
        return frozenset(i for i in (*single, *self.sentinels) if i is not None)


class Tokenizer(Protocol):
    """Text to ids and back. Special tokens typed in text are text: they never become control ids."""

    vocab_size: int
    special: SpecialTokens

    def encode(self, text: str) -> list[int]:
        """The ids of a text; adds no special token."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids; control ids give nothing."""
        ...

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """UTF-8 bytes of ids, which may end inside a character (byte-level vocabularies).

        ``decode(ids)`` equals ``decode_bytes(ids)`` decoded, and the bytes of a longer id list start
        with those of a shorter one, so that text can be streamed.
        """
        ...
