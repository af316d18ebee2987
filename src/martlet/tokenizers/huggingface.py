"""Tokenizers of plain Hugging Face checkpoints: tokenizer.json, or GPT-2's older two files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from martlet.errors import VocabularyError
from martlet.tokenizers.piece_text import UnsupportedDecoderError, decoding_rules
from martlet.tokenizers.special_names import (
    SpecialNames,
    read_json_object,
    read_special_names,
)
from martlet.tokenizers.tokenizer import PieceTokenizer
from martlet.tokenizers.vocabulary import read_vocabulary, well_formed

__all__ = ["HuggingFaceTokenizer"]

# Begins the hidden names of control tokens. A Unicode noncharacter: never part of real text, and
# taken out of text before it is encoded.
_MARK = "\ufdd0"
_LARGEST_ID = 10_000_000

_State = dict[str, Any]


class HuggingFaceTokenizer(PieceTokenizer):
    """A tokenizer.json (byte-level, SentencePiece-like or plain), run by the tokenizers library.

    The library turns a control token spelled in text into its id, be it found as an added token
    or, in Unigram models, as the piece of that name. So control tokens are renamed to what no
    text can spell before the library sees the file; ids stay. Those names begin with U+FDD0, a
    Unicode noncharacter, which is encoded as if it were U+FFFD; all other text is unchanged.

    Args:
        state: what tokenizer.json holds.
        names: what the other files of the folder say about special tokens.
        path: where the state comes from, for error messages.

    Raises:
        VocabularyError: the state is damaged, or decodes in a way that is not supported.
    """

    def __init__(self, state: _State, names: SpecialNames, path: Path) -> None:
        try:
            pieces, added, control_ids = _read_pieces(state, names)
            self._rules = decoding_rules(state.get("decoder"))
        except UnsupportedDecoderError as error:
            raise VocabularyError(
                f'{path} decodes with "{error}", which is not supported; '
                "ByteLevel, Metaspace, ByteFallback, Fuse, Replace and Strip are"
            ) from None
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise VocabularyError(
                f"{path} is not a tokenizer.json: {type(error).__name__} {error}; "
                "fetch the model again"
            ) from None
        named = pieces | added
        control = {named[token_id]: token_id for token_id in control_ids}
        self.vocab_size = 1 + max(named, default=-1)
        self.special = names.resolve(control)
        self._table = [b""] * self.vocab_size
        for token_id in named.keys() - control_ids:
            if token_id in added:  # literal text, also where pieces are not
                self._table[token_id] = added[token_id].encode("utf-8", "replace")
            else:
                self._table[token_id] = self._rules.piece_bytes(pieces[token_id])
        self._library = _open(_hide(state, control), path)

    @classmethod
    def from_json(cls, path: Path) -> HuggingFaceTokenizer:
        """The tokenizer of a tokenizer.json and the configuration files beside it.

        Raises:
            ModelFileError: a file cannot be read or is not JSON.
            VocabularyError: it is no tokenizer.json that is supported.
        """
        return cls(read_json_object(path), read_special_names(path.parent), path)

    @classmethod
    def from_gpt2_files(cls, vocab_path: Path, merges_path: Path) -> HuggingFaceTokenizer:
        """The tokenizer of GPT-2's vocab.json and merges.txt.

        Raises:
            ModelFileError: a file cannot be read or is not JSON.
            VocabularyError: they are no such files.
        """
        vocabulary = read_json_object(vocab_path)
        lines = read_vocabulary(merges_path)
        merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        added = [
            {"id": vocabulary[name], "content": name, "special": True}
            for name in ("<|endoftext|>",)
            if name in vocabulary
        ]
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
        state = {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": byte_level | {"use_regex": True},
            "decoder": byte_level | {"use_regex": True},
            "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
        }
        return cls(state, read_special_names(vocab_path.parent), vocab_path)

    def encode(self, text: str) -> list[int]:
        """The ids of a text; adds no special token."""
        safe = well_formed(text).replace(_MARK, "\ufffd")
        token_ids: list[int] = self._library.encode(safe, add_special_tokens=False).ids
        return token_ids

    def start_decoding(self) -> Callable[[int], bytes]:
        """A function for one text: given the next id, it returns the UTF-8 bytes this id adds."""
        return self._rules.start(self._table)

    def token_bytes(self) -> list[bytes | None]:
        """By id, the bytes that it adds to a text; see ``Tokenizer``."""
        return [self._rules.joiner + piece if piece else b"" for piece in self._table]


def _read_pieces(
    state: _State, names: SpecialNames
) -> tuple[dict[int, str], dict[int, str], set[int]]:
    """(pieces of the model, added tokens, control ids), the first two by id.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the state is not of this form.
    """
    pieces = {_checked_id(i): piece for piece, i in _entries(state["model"]["vocab"])}
    added_tokens = state.get("added_tokens") or []
    added = {_checked_id(token["id"]): token["content"] for token in added_tokens}
    for text in (*pieces.values(), *added.values()):
        if not isinstance(text, str):
            raise TypeError(f"the entry {text!r} is no text")
    control = {token["id"] for token in added_tokens if token.get("special")}
    known = names.all_names()
    control |= {token_id for token_id, piece in (pieces | added).items() if piece in known}
    return pieces, added, control


def _entries(vocabulary: Any) -> Iterable[tuple[str, int]]:
    """(piece, id) of a model's vocabulary: an object, or for Unigram a list of [piece, score]."""
    if isinstance(vocabulary, dict):
        return vocabulary.items()
    return ((entry[0], token_id) for token_id, entry in enumerate(vocabulary))


def _checked_id(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value < _LARGEST_ID:
        raise ValueError(f"{value!r} is no token id")
    return value


def _hide(state: _State, control: dict[str, int]) -> _State:
    """The state with control tokens under names that no text can spell, ready for the library."""
    hidden = {name: f"{_MARK}{token_id}" for name, token_id in control.items()}
    model = dict(state["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): i for piece, i in model["vocab"].items()}
    else:
        model["vocab"] = [[hidden.get(entry[0], entry[0]), entry[1]] for entry in model["vocab"]]
    if model.get("unk_token") in hidden:
        model["unk_token"] = hidden[model["unk_token"]]
    if "merges" in model:
        pairs = (m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"])
        model["merges"] = [pair for pair in pairs if not hidden.keys() & {*pair, "".join(pair)}]
    whole = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        (whole | token | {"content": hidden[token["content"]], "normalized": False})
        if token["content"] in hidden
        else token
        for token in state.get("added_tokens") or []
    ]
    # Nothing is added, cut off or filled up here, so what describes that is left out.
    without = {"post_processor": None, "truncation": None, "padding": None}
    return state | without | {"model": model, "added_tokens": added}


def _open(state: _State, path: Path) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(state))
    except Exception as error:  # the library raises nothing more precise
        reason = str(error).split("\n", 1)[0]
        raise VocabularyError(
            f"{path} is refused by the tokenizers library: {reason}; fetch the model again"
        ) from None
