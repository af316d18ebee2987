"""The tokenizers of CPM-1, CPM-2 and bilingual CPM-2, as their weights were trained.

Source: TsinghuaAI/CPM-1-Generate and TsinghuaAI/CPM-2-Finetune (behaviour, not code).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from martlet.errors import VocabularyError
from martlet.tokenizers.matcher import GreedyMatcher
from martlet.tokenizers.segmenter import default_segmenter
from martlet.tokenizers.sentencepiece_model import load_sentencepiece
from martlet.tokenizers.tokenizer import PieceTokenizer
from martlet.tokenizers.vocabulary import (
    NEWLINE_PIECE,
    PIECE_TO_WHITESPACE,
    SPACE_PIECE,
    WHITESPACE_TO_PIECE,
    index_pieces,
    read_vocabulary,
    special_tokens,
    text_bytes,
    well_formed,
)

__all__ = ["CPM1Tokenizer", "CPM2BilingualTokenizer", "CPM2Tokenizer", "GreedyTokenizer"]

_CONTROL_NAMES = ("<unk>", "<s>", "</s>", "<sep>", "<pad>", "<mask>", "<eod>")
_WORD_START = "\u2581"  # SentencePiece's mark of a space before a piece

# CPM-2 writes full-width ASCII (U+FF01 to U+FF5E; U+FF00 and U+3000 are spaces) half-width, but
# not the marks that Chinese text is punctuated with.
_CHINESE_MARKS = "，。！（）？、；："
_HALF_WIDTH = {
    code: code - 0xFEE0 for code in range(0xFF00, 0xFF5F) if chr(code) not in _CHINESE_MARKS
} | {0x3000: 0x20}


class CPM1Tokenizer(PieceTokenizer):
    """CPM-1: jieba words through the published SentencePiece unigram model.

    Text comes back as the model's NFKC normalisation of it, with U+2582 as a space, U+2583 as a
    newline and without U+2581; what the vocabulary does not have is gone.

    Args:
        path: chinese_vocab.model.

    Raises:
        ModelFileError: the file cannot be read.
        VocabularyError: it is no SentencePiece model, or that of another one.
    """

    def __init__(self, path: Path) -> None:
        self._processor = load_sentencepiece(path)
        self.vocab_size: int = self._processor.GetPieceSize()
        pieces = [self._processor.IdToPiece(token_id) for token_id in range(self.vocab_size)]
        required = (*_CONTROL_NAMES, SPACE_PIECE, NEWLINE_PIECE)
        self.special = special_tokens(index_pieces(pieces, path, required), end="<eod>")
        # Words were joined by spaces for the model; real spaces are U+2582.
        self._text_bytes = text_bytes(list(map(_bare, pieces)), self.special.control_ids())

    def normalize(self, text: str) -> str:
        """One word as it comes back: NFKC without invisible characters, spaces and newlines kept.

        The model normalises word by word, so a character that would combine with the next word
        does not.
        """
        visible: str = self._processor.Normalize(well_formed(text).translate(WHITESPACE_TO_PIECE))
        return _bare(visible).translate(PIECE_TO_WHITESPACE)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; adds no special token."""
        words = default_segmenter().cut(well_formed(text))
        joined = " ".join(word.translate(WHITESPACE_TO_PIECE) for word in words)
        token_ids: list[int] = self._processor.EncodeAsIds(joined)
        return token_ids

    def start_decoding(self) -> Callable[[int], bytes]:
        """A function for one text: given the next id, it returns the UTF-8 bytes this id adds."""
        return _lookup(self._text_bytes)


class GreedyTokenizer(PieceTokenizer):
    """jieba words cut into the longest vocabulary entries; what CPM-2 and EVA share.

    Args:
        pieces: vocabulary entries in the order of their ids.
        path: where they come from, for error messages.
        end: the entry that ends a document.
    """

    def __init__(self, pieces: list[str], path: Path, end: str) -> None:
        required = (*_CONTROL_NAMES, "<s_0>", SPACE_PIECE, NEWLINE_PIECE)
        ids = index_pieces(pieces, path, required)
        self.vocab_size = len(pieces)
        self.special = special_tokens(ids, end)
        control_ids = self.special.control_ids()
        assert self.special.unk is not None, "<unk> is required"
        self._text_bytes = text_bytes(pieces, control_ids)
        entries = [(piece, i) for piece, i in ids.items() if piece and i not in control_ids]
        entries += [(" ", ids[SPACE_PIECE]), ("\n", ids[NEWLINE_PIECE])]
        first, continuations = self._split_entries(entries)
        self._matcher = GreedyMatcher(first, self.special.unk, continuations)

    def normalize(self, text: str) -> str:
        """The text as the model sees it."""
        return text

    def encode(self, text: str) -> list[int]:
        """The ids of a text; adds no special token."""
        match = self._matcher.match
        token_ids: list[int] = []
        for word in default_segmenter().cut(self.normalize(text)):
            token_ids += match(word)
        return token_ids

    def start_decoding(self) -> Callable[[int], bytes]:
        """A function for one text: given the next id, it returns the UTF-8 bytes this id adds."""
        return _lookup(self._text_bytes)

    def _split_entries(
        self, entries: list[tuple[str, int]]
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int]] | None]:
        """Entries that may begin a word, and those that may follow (None: the same)."""
        return entries, None


class CPM2Tokenizer(GreedyTokenizer):
    """CPM-2 and CPM-2.1 (Chinese): full-width to half-width, then greedy longest match.

    Text comes back as ``normalize`` leaves it, with U+2582 as a space and U+2583 as a newline;
    characters that the vocabulary does not have are gone, and so are words longer than 200
    characters (unbroken Latin letters or digits).

    Args:
        path: vocab.txt.

    Raises:
        ModelFileError: the file cannot be read.
        VocabularyError: it is not a vocabulary of this kind.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(read_vocabulary(path), path, end="<eod>")

    def normalize(self, text: str) -> str:
        """Full-width characters as half-width ones, except the marks of Chinese punctuation."""
        return text.translate(_HALF_WIDTH)


class CPM2BilingualTokenizer(GreedyTokenizer):
    """CPM-2 for Chinese and English: ## marks pieces inside a word, and spaces are implied.

    "English" is what has no character from U+4E00 to U+9FFF, and is no space; so punctuation,
    digits and newlines are English too. One space between two English pieces is left out by
    ``encode``, and ``decode`` writes one between any two English words: "Hi,you" comes back as
    "Hi , you". Nothing is normalised.

    Args:
        path: vocab.txt with ## entries.

    Raises:
        ModelFileError: the file cannot be read.
        VocabularyError: it is not a vocabulary of this kind.
    """

    def __init__(self, path: Path) -> None:
        pieces = read_vocabulary(path)
        super().__init__(pieces, path, end="<eod>")
        if not any(map(_is_continuation, pieces)):
            raise VocabularyError(
                f"{path} with {len(pieces)} entries has no ## entry; "
                'it is a Chinese vocabulary, of tokenizer kind "cpm2"'
            )
        control_ids = self.special.control_ids()
        self._space_id = pieces.index(SPACE_PIECE)
        self._is_english = [piece != SPACE_PIECE and not _has_han(piece) for piece in pieces]
        self._is_silent = [i in control_ids for i in range(len(pieces))]
        self._is_continuation = [_is_continuation(piece) for piece in pieces]
        bare = [piece[2:] if _is_continuation(piece) else piece for piece in pieces]
        self._text_bytes = text_bytes(bare, control_ids)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; adds no special token."""
        token_ids = super().encode(text)
        english, space_id, last = self._is_english, self._space_id, len(token_ids) - 1
        return [
            token_id
            for i, token_id in enumerate(token_ids)
            if not (
                token_id == space_id
                and 0 < i < last
                and english[token_ids[i - 1]]
                and english[token_ids[i + 1]]
            )
        ]

    def start_decoding(self) -> Callable[[int], bytes]:
        """A function for one text: given the next id, it returns the UTF-8 bytes this id adds.

        A space between two English words comes with the second one.
        """
        after_english = False  # the word before has no Chinese character
        at_start = True

        def push(token_id: int) -> bytes:
            nonlocal after_english, at_start
            if not 0 <= token_id < self.vocab_size or self._is_silent[token_id]:
                return b""
            text, english = self._text_bytes[token_id], self._is_english[token_id]
            if self._is_continuation[token_id] and not at_start:
                after_english = after_english and english
                return text
            gap = b" " if after_english and english else b""
            after_english, at_start = english, False
            return gap + text

        return push

    def token_bytes(self) -> list[bytes | None]:
        """By id, the bytes that it adds to a text; see ``Tokenizer``.

        None for the English pieces that may begin a word: a space may come with them.
        """
        return [
            None if english and not (continuation or silent) else text
            for text, english, continuation, silent in zip(
                self._text_bytes,
                self._is_english,
                self._is_continuation,
                self._is_silent,
                strict=True,
            )
        ]

    def _split_entries(
        self, entries: list[tuple[str, int]]
    ) -> tuple[list[tuple[str, int]], list[tuple[str, int]] | None]:
        first = [(piece, i) for piece, i in entries if not _is_continuation(piece)]
        inside = [(piece, i) for piece, i in first if _has_han(piece)]
        marked = [(piece[2:], i) for piece, i in entries if _is_continuation(piece)]
        return first, inside + marked


def _bare(piece: str) -> str:
    return piece.replace(_WORD_START, "").replace(" ", "")


def _is_continuation(piece: str) -> bool:
    return len(piece) > 2 and piece.startswith("##")


def _has_han(text: str) -> bool:
    return any("\u4e00" <= character <= "\u9fff" for character in text)


def _lookup(table: list[bytes]) -> Callable[[int], bytes]:
    """Bytes by id; nothing for ids that are no entry."""
    return lambda token_id: table[token_id] if 0 <= token_id < len(table) else b""
