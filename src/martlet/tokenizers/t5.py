"""The tokenizer of T5 checkpoints that bring a SentencePiece model and no tokenizer.json."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from martlet.tokenizers.piece_text import ALL_LEADING, DecodingRules
from martlet.tokenizers.sentencepiece_model import load_sentencepiece
from martlet.tokenizers.special_names import read_special_names, sentinel_number
from martlet.tokenizers.tokenizer import PieceTokenizer
from martlet.tokenizers.vocabulary import well_formed

__all__ = ["T5Tokenizer"]

_WORD_START = "\u2581"
_MARKED_WORD = re.compile(f"{_WORD_START}[^{_WORD_START}]")
_T5_EXTRA_IDS = 100


class T5Tokenizer(PieceTokenizer):
    """T5, Flan-T5 and mT5: a SentencePiece model and sentinels <extra_id_0>, <extra_id_1>, ...

    mT5's model has the sentinels as pieces. T5's has not: 100 (or ``extra_ids`` of
    tokenizer_config.json) follow the pieces, the last id being <extra_id_0>.

    Args:
        path: spiece.model; configuration files beside it are read.

    Raises:
        ModelFileError: a file cannot be read.
        VocabularyError: it is no SentencePiece model.
    """

    def __init__(self, path: Path) -> None:
        names = read_special_names(path.parent)
        additional = frozenset(names.additional)
        self._processor = load_sentencepiece(
            path, lambda piece: sentinel_number(piece) is not None or piece in additional
        )
        pieces = [self._processor.IdToPiece(i) for i in range(self._processor.GetPieceSize())]
        control = {
            piece: i
            for i, piece in enumerate(pieces)
            if self._processor.IsControl(i) or self._processor.IsUnknown(i)
        }
        if not any(sentinel_number(piece) is not None for piece in pieces):
            count = _T5_EXTRA_IDS if names.extra_ids is None else names.extra_ids
            last = len(pieces) + count - 1
            control |= {f"<extra_id_{number}>": last - number for number in range(count)}
            pieces += [""] * count
        self.vocab_size = len(pieces)
        roles = {"unk": "<unk>", "eos": "</s>", "pad": "<pad>"} | names.names
        self.special = replace(names, names=roles).resolve(control)
        silent = self.special.control_ids()
        self._rules = self._decoding_rules([p for p in pieces if p not in control])
        self._table = [
            b"" if i in silent else self._rules.piece_bytes(piece) for i, piece in enumerate(pieces)
        ]

    def encode(self, text: str) -> list[int]:
        """The ids of a text; adds no special token."""
        token_ids: list[int] = self._processor.EncodeAsIds(well_formed(text))
        return token_ids

    def start_decoding(self) -> Callable[[int], bytes]:
        """A function for one text: given the next id, it returns the UTF-8 bytes this id adds."""
        return self._rules.start(self._table)

    def token_bytes(self) -> list[bytes | None]:
        """By id, the bytes that it adds to a text; see ``Tokenizer``."""
        return [self._rules.joiner + piece if piece else b"" for piece in self._table]

    def _decoding_rules(self, pieces: list[str]) -> DecodingRules:
        """How the model's own settings treat spaces at the beginning, found by asking it."""
        decode = self._processor.DecodePieces
        # A piece that is not in the vocabulary would come back as it is, so take one that is.
        marked = next((piece for piece in pieces if _MARKED_WORD.match(piece)), _WORD_START)
        strips = decode([marked]) == marked[1:]
        strips_all = decode([_WORD_START, marked]) == marked[1:]
        return DecodingRules(
            byte_fallback=True,
            replacements=((_WORD_START, " "),),
            strip=(ALL_LEADING if strips_all else 1) if strips else 0,
        )
