"""Tokenizers of plain Hugging Face checkpoints: tokenizer.json, or GPT-2's older two files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from martlet.errors import VocabularyError
from martlet.tokenizers.control_names import MARK, TemplateNames, TokenNames
from martlet.tokenizers.piece_text import UnsupportedDecoderError, decoding_rules
from martlet.tokenizers.special_names import (
    SpecialNames,
    read_json_object,
    read_special_names,
)
from martlet.tokenizers.tokenizer import PieceTokenizer
from martlet.tokenizers.tokenizer_state import (
    State,
    StatePieces,
    hide_names,
    read_pieces,
    start_ids,
)
from martlet.tokenizers.vocabulary import read_vocabulary, well_formed

__all__ = ["HuggingFaceTokenizer"]


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

    def __init__(self, state: State, names: SpecialNames, path: Path) -> None:
        try:
            state = _with_added(state, names.added)
            pieces = read_pieces(state, names)
            self._rules = decoding_rules(state.get("decoder"))
            self.special = names.resolve(pieces.control)
            start = start_ids(state, names, self.special.bos)
            self._control = TokenNames(pieces.control)
            self._visible = TokenNames(pieces.visible)
            state = hide_names(state, pieces, TokenNames({**pieces.visible, **pieces.control}))
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
        self.special = replace(self.special, start=start)
        named = pieces.all
        self.vocab_size = 1 + max(named, default=-1)
        control_ids = self.special.control_ids()
        self._table = [b""] * self.vocab_size
        for token_id in named.keys() - control_ids:
            if token_id in pieces.added:  # literal text, also where pieces are not
                self._table[token_id] = pieces.added[token_id].encode("utf-8", "replace")
            else:
                self._table[token_id] = self._rules.piece_bytes(pieces.pieces[token_id])
        self._path = path
        self._names = names
        self._library = _open(state, path)
        self._check_ids(pieces, path)

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
        safe = well_formed(text).replace(MARK, "\ufffd")
        return self._encode(self._visible.hide_all(safe))

    def forget_from(self, num_rows: int) -> bool:
        """Forget control tokens with ids past the rows of a model, so that nothing becomes one.

        Some vocabularies name tokens that only larger models of a family have rows for. Returns
        False, and changes nothing, where such a token is one that text is made of.
        """
        past = {i for i in range(num_rows, self.vocab_size) if self._table[i]}
        past |= {i for i in self.special.control_ids() if i >= num_rows}
        named = {**self._visible.ids, **self._control.ids}
        if not past <= set(named.values()):
            return False
        kept = {name: i for name, i in self._control.ids.items() if i < num_rows}
        self._visible = TokenNames({n: i for n, i in self._visible.ids.items() if i < num_rows})
        self._control = TokenNames(kept)
        start = tuple(i for i in self.special.start if i < num_rows)
        self.special = replace(self._names.resolve(kept), start=start)
        self.vocab_size = num_rows
        del self._table[num_rows:]
        return True

    @property
    def has_thought_marks(self) -> bool:
        """Whether <think> is a token."""
        return "<think>" in self._visible.ids

    def template_names(self, literals: Iterable[str]) -> TemplateNames:
        """The names that a chat template may mean, given the text that stands in its source."""
        source = "\0".join(literals)
        meant = {name: i for name, i in self._visible.ids.items() if name in source}
        ordinary = {name: i for name, i in self._visible.ids.items() if name not in meant}
        return TemplateNames(TokenNames({**meant, **self._control.ids}), TokenNames(ordinary))

    def encode_spelled(self, text: str, names: TemplateNames) -> list[int]:
        """The ids of what a chat template wrote, whose control tokens are spelled.

        What it quotes must have gone through ``names.quoted`` before.
        """
        return self._encode(names.spelled_out(well_formed(text)))

    def _encode(self, text: str) -> list[int]:
        try:
            token_ids: list[int] = self._library.encode(text, add_special_tokens=False).ids
        except BaseException as error:
            raise _refused(error, f"{self._path} cannot cut this text into tokens") from None
        return token_ids

    def start_decoding(self) -> Callable[[int], bytes]:
        """A function for one text: given the next id, it returns the UTF-8 bytes this id adds."""
        return self._rules.start(self._table)

    def token_bytes(self) -> list[bytes | None]:
        """By id, the bytes that it adds to a text; see ``Tokenizer``."""
        return [self._rules.joiner + piece if piece else b"" for piece in self._table]

    def _check_ids(self, pieces: StatePieces, path: Path) -> None:
        """The library counts added tokens by itself, whatever ids the file gives them."""
        for name, token_id in {**pieces.control, **pieces.visible}.items():
            found = self._library.token_to_id(TokenNames({name: token_id}).hidden(name))
            if found != token_id:
                raise VocabularyError(
                    f"{path} gives {name!r:.80} the id {token_id}, where the tokenizers library "
                    f"counts {found}; fetch the model again"
                )


def _with_added(state: State, added: Iterable[dict[str, Any]]) -> State:
    """The state with further added tokens; those that it has already stay as they are."""
    listed = list(state.get("added_tokens") or [])
    known = {token["id"] for token in listed}
    return state | {"added_tokens": listed + [t for t in added if t["id"] not in known]}


def _open(state: State, path: Path) -> Any:
    import tokenizers

    try:
        return tokenizers.Tokenizer.from_str(json.dumps(state))
    except BaseException as error:
        raise _refused(error, f"{path} is refused by the tokenizers library") from None


def _refused(error: BaseException, what: str) -> BaseException:
    """What the library says with errors of no class of its own, some of them no Exception even."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        return error  # Ctrl-C
    reason = str(error).split("\n", 1)[0]
    return VocabularyError(f"{what}: {reason:.200}; fetch the model again")
