"""Folders with a SentencePiece model alone: what their tokenizer.json would hold."""

from __future__ import annotations

import base64
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from martlet.errors import VocabularyError
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.merges import merges_by_score
from martlet.tokenizers.piece_kind import PieceKind
from martlet.tokenizers.special_names import (
    SpecialNames,
    read_optional_object,
    read_special_names,
)
from martlet.tokenizers.vocabulary import read_tokenizer_file

__all__ = ["load_sentencepiece_folder"]

_SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
# Fields of the two messages with settings: model type, byte fallback, ids of unknown, beginning and
# end; the table of characters, whether a space is put in front, and whether spaces are joined.
_TRAINED = {3: int, 35: int, 40: int, 41: int, 42: int}
_NORMALIZES = {2: bytes, 3: int, 4: int}
_State = dict[str, Any]
_Fields = dict[int, Any]


@dataclass(frozen=True)
class _Piece:
    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class _Model:
    """A ModelProto: its pieces by id, how it was trained, how it normalises text."""

    pieces: list[_Piece]
    trained: _Fields
    normalizes: _Fields

    @property
    def roles(self) -> dict[str, str]:
        """The pieces that the model itself calls unknown, beginning and end."""
        named = (("unk", 40, 0), ("bos", 41, 1), ("eos", 42, 2))
        ids = {role: _signed(self.trained.get(field, usual)) for role, field, usual in named}
        return {role: self.pieces[i].text for role, i in ids.items() if 0 <= i < len(self.pieces)}


def load_sentencepiece_folder(path: Path) -> HuggingFaceTokenizer:
    """The tokenizer of a tokenizer.model and the configuration files beside it.

    Further tokens come from tokenizer_config.json's added_tokens_decoder and added_tokens.json;
    its ``legacy`` and ``add_prefix_space`` say before which stretches of text a space is put.
    Texts begin with bos unless it says otherwise.

    Raises:
        ModelFileError: a file cannot be read, or is not JSON.
        VocabularyError: it is no SentencePiece model that is supported.
    """
    model = _read_model(path)
    names = read_special_names(path.parent)
    names = replace(
        names,
        names={**model.roles, **names.names},
        adds_bos=True if names.adds_bos is None else names.adds_bos,
    )
    config = read_optional_object(path.parent / "tokenizer_config.json")
    return HuggingFaceTokenizer(_state_of(model, names, config, path), names, path)


def _state_of(model: _Model, names: SpecialNames, config: Mapping[str, Any], path: Path) -> _State:
    pieces = _renamed(model.pieces, names)
    added = [
        {"id": i, "content": piece.text, "special": piece.kind != PieceKind.USER_DEFINED}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for i, piece in enumerate(pieces)
        if piece.kind in (PieceKind.UNKNOWN, PieceKind.CONTROL, PieceKind.USER_DEFINED)
    ]
    has_prefix = bool(model.normalizes.get(3, True))
    if type(given := config.get("add_prefix_space")) is bool:
        has_prefix = given
    is_first_alone = config.get("legacy") is False
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    state: _State = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(model)},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": _library_model(model, pieces, path),
    }
    if has_prefix and is_first_alone:
        space = {"type": "Metaspace", "replacement": _SPACE, "prepend_scheme": "first"}
        return state | {"pre_tokenizer": space | {"split": False}}
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if has_prefix else []
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    state["normalizer"]["normalizers"] += [*prefix, spaces]
    return state


def _normalizers(model: _Model) -> list[dict[str, Any]]:
    """What SentencePiece does to a text before it puts ▁ for spaces."""
    steps: list[dict[str, Any]] = []
    if charsmap := model.normalizes.get(2):
        encoded = base64.b64encode(charsmap).decode("ascii")
        steps.append({"type": "Precompiled", "precompiled_charsmap": encoded})
    if model.normalizes.get(4, True):
        steps.append({"type": "Replace", "pattern": {"Regex": r"\A +| +\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    return steps


def _library_model(model: _Model, pieces: list[_Piece], path: Path) -> dict[str, Any]:
    has_bytes = bool(model.trained.get(35, False))
    unknown = next((i for i, piece in enumerate(pieces) if piece.kind == PieceKind.UNKNOWN), None)
    if model.trained.get(3, _UNIGRAM) == _UNIGRAM:
        vocabulary = [[piece.text, piece.score] for piece in pieces]
        return {
            "type": "Unigram",
            "unk_id": unknown,
            "vocab": vocabulary,
            "byte_fallback": has_bytes,
        }
    scores = {piece.text: piece.score for piece in pieces if piece.kind == PieceKind.NORMAL}
    return {
        "type": "BPE",
        "vocab": {piece.text: i for i, piece in enumerate(pieces)},
        "merges": merges_by_score(scores, path),
        "unk_token": None if unknown is None else pieces[unknown].text,
        "fuse_unk": True,
        "byte_fallback": has_bytes,
    }


def _renamed(pieces: list[_Piece], names: SpecialNames) -> list[_Piece]:
    """The pieces with spare ones under the names that added_tokens_decoder gives their ids."""
    renamed = list(pieces)
    for token in names.added:
        token_id = token["id"]
        if token_id < len(renamed) and renamed[token_id].text != token["content"]:
            kind = PieceKind.CONTROL if token.get("special") else PieceKind.USER_DEFINED
            renamed[token_id] = _Piece(token["content"], renamed[token_id].score, kind)
    return renamed


def _read_model(path: Path) -> _Model:
    """The model in a file.

    Raises:
        VocabularyError: it is none, is cut off, or cuts text into words or characters.
    """
    data = read_tokenizer_file(path)
    try:
        fields = list(_fields_of(data))
        pieces = [_piece(value) for number, value in fields if number == 1]
        trained = _settings((value for number, value in fields if number == 2), _TRAINED)
        normalizes = _settings((value for number, value in fields if number == 3), _NORMALIZES)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        pieces = []
    if not pieces or len({piece.text for piece in pieces}) != len(pieces):
        raise VocabularyError(
            f"{path} with {len(data):,} bytes is no SentencePiece model or is damaged; "
            "fetch the model again"
        )
    if trained.get(3, _UNIGRAM) not in (_UNIGRAM, _BPE):
        raise VocabularyError(
            f"{path} cuts text into words or characters; unigram and BPE models are supported"
        )
    return _Model(pieces, trained, normalizes)


def _piece(data: bytes) -> _Piece:
    fields = dict(_fields_of(data))
    (score,) = struct.unpack("<f", fields[2]) if 2 in fields else (0.0,)
    kind = int(fields.get(3, PieceKind.NORMAL))
    return _Piece(fields[1].decode("utf-8"), score if abs(score) < 1e9 else 0.0, kind)


def _settings(messages: Iterator[bytes], types: Mapping[int, type]) -> _Fields:
    """Those fields of a message that matter here; one that is given twice counts as given last.

    Raises:
        TypeError: one is of another type.
    """
    settings = {number: value for data in messages for number, value in _fields_of(data)}
    chosen = {number: settings[number] for number in types if number in settings}
    if any(not isinstance(value, types[number]) for number, value in chosen.items()):
        raise TypeError("a setting is of another type")
    return chosen


def _fields_of(data: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of the fields of a protocol-buffer message: whole numbers, or bytes.

    Raises:
        ValueError, IndexError: the bytes are none, or end inside a field.
    """
    position = 0
    while position < len(data):
        tag, position = _varint(data, position)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            length, position = _varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + length > len(data):
            raise IndexError(position)
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(position)


def _signed(value: int) -> int:
    """A number as int32: -1, for none, is written as the largest of 64 bits."""
    return value - (1 << 64) if value >> 63 else value
