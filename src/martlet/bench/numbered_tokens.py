"""A vocabulary for weights that have none: every token is its number."""

from __future__ import annotations

from collections.abc import Callable

from martlet.errors import UsageError
from martlet.tokenizers.tokenizer import PieceTokenizer, SpecialTokens

__all__ = ["NumberedTokens"]


class NumberedTokens(PieceTokenizer):
    """Ids are written as numbers between spaces; there are no control tokens."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.special = SpecialTokens()

    def encode(self, text: str) -> list[int]:
        """The ids that a text of numbers names.

        Raises:
            UsageError: something in it is no id.
        """
        words = text.split()
        if not all(word.isdecimal() and int(word) < self.vocab_size for word in words):
            raise UsageError(f"only numbers below {self.vocab_size} are tokens here")
        return [int(word) for word in words]

    def start_decoding(self) -> Callable[[int], bytes]:
        """A function that returns the number of an id, and a space."""
        return lambda token_id: f"{token_id} ".encode()
