"""Opening SentencePiece models, with chosen pieces made unreachable from text."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from martlet.errors import VocabularyError
from martlet.tokenizers.vocabulary import read_tokenizer_file

__all__ = ["load_sentencepiece"]

# Protocol-buffer facts of SentencePiece's ModelProto: field 1 (length-delimited, hence tag 0x0A)
# repeats the pieces; in a piece field 1 is its text and field 3 its type, where 3 = CONTROL, a
# piece that text never becomes. A field given twice counts as given last.
_PIECE_TAG = 0x0A
_CONTROL_TYPE = b"\x18\x03"


def load_sentencepiece(path: Path, is_control: Callable[[str], bool] | None = None) -> Any:
    """A ``sentencepiece.SentencePieceProcessor`` for a model file.

    Args:
        path: the .model file.
        is_control: tells pieces that steer a model but which the file calls ordinary, so that
            text could spell them; they are marked as control pieces, keeping their ids.

    Raises:
        ModelFileError: the file cannot be read.
        VocabularyError: it is no SentencePiece model.
    """
    data = read_tokenizer_file(path)
    with warnings.catch_warnings():  # SWIG's types lack __module__, a warning since Python 3.12
        warnings.simplefilter("ignore")
        import sentencepiece
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.LoadFromSerializedProto(_mark_control(data, is_control) if is_control else data)
        num_pieces = processor.GetPieceSize()
    except (RuntimeError, ValueError, IndexError):
        num_pieces = 0
    if num_pieces == 0:
        raise VocabularyError(
            f"{path} with {len(data)} bytes is no SentencePiece model or is cut short; "
            "fetch or convert the model again"
        )
    return processor


def _mark_control(data: bytes, is_control: Callable[[str], bool]) -> bytes:
    """The model with the type of the chosen pieces set to CONTROL.

    Raises:
        ValueError: the bytes are not what a ModelProto looks like.
        IndexError: they end inside a field.
    """
    output, position = bytearray(), 0
    while position < len(data) and data[position] == _PIECE_TAG:
        length, start = _read_varint(data, position + 1)
        piece = data[start : start + length]
        if len(piece) != length:
            raise IndexError(position)
        if is_control(_piece_text(piece)):
            piece += _CONTROL_TYPE
        output.append(_PIECE_TAG)
        output += _write_varint(len(piece)) + piece
        position = start + length
    return bytes(output + data[position:])  # trainer and normaliser settings follow the pieces


def _piece_text(piece: bytes) -> str:
    if not piece or piece[0] != _PIECE_TAG:
        raise ValueError(piece[:1])
    length, start = _read_varint(piece, 1)
    return piece[start : start + length].decode("utf-8", "replace")


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position += 1
        shift += 7
        if byte < 0x80:
            return value, position
        if shift > 63:
            raise ValueError(position)


def _write_varint(value: int) -> bytes:
    output = bytearray()
    while value > 0x7F:
        output.append(value & 0x7F | 0x80)
        value >>= 7
    output.append(value)
    return bytes(output)
