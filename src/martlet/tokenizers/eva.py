"""The tokenizer of EVA 1.0 and EVA 2.0, as their weights were trained.

Source: thu-coai/EVA, src/tokenization_eva.py (behaviour, not code).
"""

from __future__ import annotations

from pathlib import Path

from martlet.errors import VocabularyError
from martlet.tokenizers.cpm import GreedyTokenizer
from martlet.tokenizers.vocabulary import read_vocabulary

__all__ = ["EVATokenizer"]

_EMPTY_ID = 8

# Quotation marks of every shape become straight; full-width ASCII punctuation becomes ASCII, but
# full-width letters and digits, and the marks 。 and 、, stay. The ellipsis goes first.
_PUNCTUATION = str.maketrans(
    {
        character: ord(character) - 0xFEE0
        for character in "！＃＄％＆（）＊＋，－／：；＜＝＞？＠［＼］＾＿｀｛｜｝～"
    }
    | dict.fromkeys("＂〝〞“”‟", '"')
    | dict.fromkeys("＇‘’‛", "'")
    | {"…": "..."}
)


class EVATokenizer(GreedyTokenizer):
    """EVA: its own punctuation map, then jieba and greedy longest match.

    Text comes back as ``normalize`` leaves it, with U+2582 as a space and U+2583 as a newline;
    characters that the vocabulary does not have are gone, and so are words longer than 200
    characters. The vocabulary's empty line, id 8, is an entry that no text becomes and that
    decodes to nothing.

    Args:
        path: vocab.txt; the empty line must be in it, or all later ids would be off by one.

    Raises:
        ModelFileError: the file cannot be read.
        VocabularyError: it is not a vocabulary of this kind.
    """

    def __init__(self, path: Path) -> None:
        pieces = read_vocabulary(path)
        super().__init__(pieces, path, end="<sep>")
        if pieces[_EMPTY_ID] != "":
            raise VocabularyError(
                f"{path} has {pieces[_EMPTY_ID]!r} as entry {_EMPTY_ID} where EVA's vocabulary has "
                "an empty line, so later ids would be off by one; take the published vocab.txt"
            )

    def normalize(self, text: str) -> str:
        """The text with punctuation in ASCII, as the dialogues of the training data had it."""
        return text.translate(_PUNCTUATION)
