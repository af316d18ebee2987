"""Vocabulary files: one entry a line, and what the CPM and EVA ones have in common."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from martlet.errors import ModelFileError, VocabularyError
from martlet.tokenizers.tokenizer import SpecialTokens

__all__ = [
    "NEWLINE_PIECE",
    "PIECE_TO_WHITESPACE",
    "SPACE_PIECE",
    "WHITESPACE_TO_PIECE",
    "index_pieces",
    "read_tokenizer_file",
    "read_vocabulary",
    "special_tokens",
    "text_bytes",
    "well_formed",
]

SPACE_PIECE = "\u2582"
NEWLINE_PIECE = "\u2583"
WHITESPACE_TO_PIECE = str.maketrans({" ": SPACE_PIECE, "\n": NEWLINE_PIECE})
PIECE_TO_WHITESPACE = str.maketrans({SPACE_PIECE: " ", NEWLINE_PIECE: "\n"})

_LARGEST_FILE_BYTES = 64 << 20


def read_vocabulary(path: Path) -> list[str]:
    """Entries of a vocab.txt in the order of their ids; an empty line is an entry of its own.

    Raises:
        ModelFileError: the file cannot be read, is far too big or is not UTF-8 text.
    """
    data = read_tokenizer_file(path)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{path} is not a vocabulary: byte {error.start} is not UTF-8; "
            "fetch or convert the model again"
        ) from None
    lines = text.removesuffix("\n").split("\n")  # not splitlines(): U+2028 is an entry, no end
    return [line.removesuffix("\r") for line in lines]


def read_tokenizer_file(path: Path) -> bytes:
    """All bytes of one tokenizer file.

    Raises:
        ModelFileError: the file cannot be read or is far too big.
    """
    try:
        size_bytes = path.stat().st_size
        if size_bytes > _LARGEST_FILE_BYTES:
            raise ModelFileError(
                f"{path} has {size_bytes} bytes, more than the {_LARGEST_FILE_BYTES} a tokenizer "
                "file may have; is it the right file?"
            )
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ModelFileError(
            f"cannot read the tokenizer file {path}: {reason}; convert the model again"
        ) from None


def index_pieces(pieces: Sequence[str], path: Path, required: Iterable[str]) -> dict[str, int]:
    """Ids by entry.

    Raises:
        VocabularyError: an entry stands there twice or a required one is missing.
    """
    ids = {piece: token_id for token_id, piece in enumerate(pieces)}
    if len(ids) != len(pieces):
        token_id = next(i for i, piece in enumerate(pieces) if ids[piece] != i)
        raise VocabularyError(
            f"{path} lists {pieces[token_id]!r} twice, as ids {token_id} and "
            f"{ids[pieces[token_id]]}; it is damaged or not a vocabulary"
        )
    if missing := [piece for piece in required if piece not in ids]:
        raise VocabularyError(
            f"{path} with {len(pieces)} entries has no {' '.join(missing)}; "
            "it is the vocabulary of another model"
        )
    return ids


def special_tokens(ids: Mapping[str, int], end: str) -> SpecialTokens:
    """Control tokens of a CPM or EVA vocabulary.

    Args:
        ids: ids by entry.
        end: the entry that ends a document of this model.
    """
    sentinels: list[int] = []
    while (token_id := ids.get(f"<s_{len(sentinels)}>")) is not None:
        sentinels.append(token_id)
    others = [ids[name] for name in ("</s>", "<go>", "<eod>") if name in ids and name != end]
    return SpecialTokens(
        unk=ids["<unk>"],
        bos=ids["<s>"],
        eos=ids[end],
        pad=ids["<pad>"],
        sep=ids["<sep>"],
        mask=ids["<mask>"],
        sentinels=tuple(sentinels),
        others=tuple(others),
    )


def text_bytes(pieces: Sequence[str], control_ids: frozenset[int]) -> list[bytes]:
    """What each id adds to a text, as UTF-8; nothing for control ids."""
    return [
        b"" if token_id in control_ids else piece.translate(PIECE_TO_WHITESPACE).encode()
        for token_id, piece in enumerate(pieces)
    ]


def well_formed(text: str) -> str:
    """The text with halves of surrogate pairs, which have no UTF-8 form, as U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
