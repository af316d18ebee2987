"""What every tokenizer offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["PieceTokenizer", "SpecialTokens", "Tokenizer"]


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that steer a model and are never shown; None where the vocabulary has none.

    ``sentinels`` are <s_0>, <s_1>, ... of the CPM-2 and EVA vocabularies (<extra_id_0>, ... of T5).
    ``eos`` ends a document: <eod> for CPM, <sep> for EVA, </s> for T5.
    ``others`` are control ids without a role above, such as CPM's </s> and <go>.
    ``start`` is what stands before every text, a bos for most models that have one; its ids are
    among those above.
    """

    unk: int | None = None
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    sep: int | None = None
    mask: int | None = None
    sentinels: tuple[int, ...] = ()
    others: tuple[int, ...] = ()
    start: tuple[int, ...] = ()

    def control_ids(self) -> frozenset[int]:
        """All ids above: tokens that carry no text."""
        single = (self.unk, self.bos, self.eos, self.pad, self.sep, self.mask)
        many = (*self.sentinels, *self.others)
        return frozenset(i for i in (*single, *many) if i is not None)


class Tokenizer(Protocol):
    """Text to ids and back. Special tokens typed in text are text: they never become control ids.

    ``vocab_size`` counts the entries of the vocabulary, gaps and control tokens included; ids at or
    past it (rows that pad an embedding table) decode to nothing.
    """

    vocab_size: int
    special: SpecialTokens

    def encode(self, text: str) -> list[int]:
        """The ids of a text; adds no special token."""
        ...

    def start_decoding(self) -> Callable[[int], bytes]:
        """A function for one text: given the next id, it returns the UTF-8 bytes this id adds."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids; control ids give nothing, bytes that are no UTF-8 give U+FFFD."""
        ...

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """UTF-8 bytes of ids, which may end inside a character (byte-level vocabularies).

        ``decode(ids)`` equals ``decode_bytes(ids)`` decoded, and the bytes of a longer id list
        start with those of a shorter one, so that text can be streamed. A space that a vocabulary
        puts before the first word is left out where the text begins and nowhere else; a space
        that depends on both neighbours is written with the right one.
        """
        ...

    def token_bytes(self) -> list[bytes | None]:
        """By id, the bytes that it adds to a text wherever it stands.

        Control ids add nothing; None is an id for which that depends on its neighbours. The bytes
        of ids without such a one, joined, are their ``decode_bytes``, but for spaces where the
        text begins: a vocabulary that puts a space before every word leaves out the first.
        """
        ...


class PieceTokenizer(ABC):
    """Derives both decodings from ``start_decoding``, so that they agree by construction."""

    vocab_size: int
    special: SpecialTokens

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """The ids of a text; adds no special token."""

    @abstractmethod
    def start_decoding(self) -> Callable[[int], bytes]:
        """A function for one text: given the next id, it returns the UTF-8 bytes this id adds."""

    def decode_bytes(self, token_ids: Sequence[int]) -> bytes:
        """UTF-8 bytes of ids, which may end inside a character; see ``Tokenizer``."""
        return b"".join(map(self.start_decoding(), token_ids))

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids; control ids give nothing, bytes that are no UTF-8 give U+FFFD."""
        return self.decode_bytes(token_ids).decode("utf-8", "replace")

    def token_bytes(self) -> list[bytes | None]:
        """By id, the bytes that it adds to a text; see ``Tokenizer``.

        This is for vocabularies where no id looks at its neighbours.
        """
        return list(map(self.start_decoding(), range(self.vocab_size)))
