"""Text of a growing list of ids, piece by piece."""

from __future__ import annotations

import codecs

from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["Detokenizer"]


class Detokenizer:
    """Turns ids into text while they are generated, never giving half a character.

    The pieces that ``push`` and the last ``flush`` return, joined, are ``tokenizer.decode`` of
    all ids. The cost of a push does not grow with the text. One detokenizer serves one text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._add = tokenizer.start_decoding()
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that this id completes; "" while a character is still open."""
        return self._decoder.decode(self._add(token_id))

    def flush(self) -> str:
        """What is left when no id follows: U+FFFD for a character never completed, else ""."""
        return self._decoder.decode(b"", final=True)
