"""Greedy longest match of a word against a vocabulary, in one walk over a trie.

The CPM-2 and EVA vocabularies are plain word lists: a word is cut from the left, each time
taking the longest entry that fits. Trying every substring against a dictionary copies and hashes
the rest of the word again and again; here the trie is walked once a piece, character by
character, so the work is at most (longest entry + 1) steps a character whatever the text.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

__all__ = ["MAX_WORD_CHARACTERS", "GreedyMatcher"]

MAX_WORD_CHARACTERS = 200
"""A longer word is one unknown token, as in the published tokenizers."""

_END = ""  # no character, so it cannot collide with an edge of the trie

# A node maps a character to the next node and _END to the id of the piece that ends there.
_Node = dict[str, Any]


class GreedyMatcher:
    """Cuts words into the longest vocabulary entries, from the left.

    Args:
        pieces: (text, id) of the entries that may match; leave control tokens out.
        unk_id: stands for every character at which no entry begins.
        continuations: entries that match after the first piece of a word; None = ``pieces``.
    """

    def __init__(
        self,
        pieces: Iterable[tuple[str, int]],
        unk_id: int,
        continuations: Iterable[tuple[str, int]] | None = None,
    ) -> None:
        self._whole = dict(pieces)
        self._first = _build_trie(self._whole.items())
        self._rest = self._first if continuations is None else _build_trie(continuations)
        self._unk_id = unk_id

    def match(self, word: str) -> list[int]:
        """Ids of the pieces of one word, in order."""
        if (whole := self._whole.get(word)) is not None:  # most words are an entry themselves
            return [whole]
        length = len(word)
        if length > MAX_WORD_CHARACTERS:
            return [self._unk_id]
        token_ids: list[int] = []
        root, start = self._first, 0
        while start < length:
            node, token_id, end, position = root, self._unk_id, start + 1, start
            while position < length and (child := node.get(word[position])) is not None:
                node = child
                position += 1
                if _END in node:
                    token_id, end = node[_END], position
            token_ids.append(token_id)
            root, start = self._rest, end
        return token_ids


def _build_trie(pieces: Iterable[tuple[str, int]]) -> _Node:
    root: _Node = {}
    for text, token_id in pieces:
        assert text, "an empty entry would match without end"
        node = root
        for character in text:
            node = node.setdefault(character, {})
        node[_END] = token_id
    return root
