"""The vocabulary in the keys of a GGUF file, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet.errors import VocabularyError
from martlet.tokenizers.piece_kind import PieceKind

__all__ = ["GGUFVocabulary", "read_gguf_vocabulary"]

_PREFIX = "tokenizer.ggml."
_MAX_TOKENS = 1 << 20
# The files spell "separator" so.
_ROLES = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad", "seperator": "sep"}
# Tokens that end a turn wherever they are control tokens; files do not always say which does.
_ENDS = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
)


@dataclass(frozen=True)
class GGUFVocabulary:
    """Tokens by id with what they are.

    ``model`` is "gpt2" for bytes and merges, "llama" for SentencePiece's pieces with scores.
    ``roles`` maps "bos" and its like to an id, ``end_ids`` are all that end an answer.
    """

    path: Path
    model: str
    tokens: list[str]
    kinds: list[int]
    scores: list[float]
    merges: list[str]
    keys: Mapping[str, Any]
    roles: dict[str, int]
    end_ids: tuple[int, ...]

    def flag(self, name: str, default: bool) -> bool:
        """A setting that is true or false.

        Raises:
            VocabularyError: it is something else.
        """
        value = self.keys.get(_PREFIX + name, default)
        if not isinstance(value, bool):
            raise VocabularyError(f"{self.path}: {_PREFIX}{name} is {value!r:.40}, expected a bool")
        return value

    def word(self, name: str) -> str | None:
        """A setting that is text, None where it is missing or something else."""
        value = self.keys.get(_PREFIX + name)
        return value if isinstance(value, str) else None


def read_gguf_vocabulary(metadata: Mapping[str, Any], path: Path) -> GGUFVocabulary | None:
    """The vocabulary of a file, None where it has none.

    Raises:
        VocabularyError: the lists are not of one length, a token occurs twice, or there is no
            token of an id that the file names.
    """
    model = metadata.get(_PREFIX + "model")
    if model is None or model == "no_vocab":
        return None
    if model not in ("gpt2", "llama"):
        raise VocabularyError(
            f"{path}: {_PREFIX}model is {model!r:.40}, supported are gpt2 and llama; convert the "
            f"file with --tokenizer and the tokenizer.json of the model"
        )
    tokens = _list(metadata, path, "tokens", str)
    count = len(tokens)
    if not 0 < count <= _MAX_TOKENS:
        raise VocabularyError(f"{path}: {count:,} tokens, 1 to {_MAX_TOKENS:,} are possible")
    kinds = _list(metadata, path, "token_type", int) or [int(PieceKind.NORMAL)] * count
    scores = _list(metadata, path, "scores", float) or [0.0] * count
    for name, values in (("token_type", kinds), ("scores", scores)):
        if len(values) != count:
            raise VocabularyError(
                f"{path}: {len(values):,} values of {_PREFIX}{name} for {count:,} tokens"
            )
    roles = {
        ours: token_id
        for theirs, ours in _ROLES.items()
        if (token_id := _id(metadata, path, theirs, count)) is not None
    }
    ends = {
        token_id
        for name in ("eos", "eot", "eom")
        if (token_id := _id(metadata, path, name, count)) is not None
    }
    ends |= {
        i for i, token in enumerate(tokens) if token in _ENDS and kinds[i] == PieceKind.CONTROL
    }
    return GGUFVocabulary(
        path=path,
        model=str(model),
        tokens=_different(tokens, kinds, path),
        kinds=kinds,
        scores=scores,
        merges=_list(metadata, path, "merges", str),
        keys=metadata,
        roles=roles,
        end_ids=tuple(sorted(ends)),
    )


def _list(metadata: Mapping[str, Any], path: Path, name: str, kind: type) -> list[Any]:
    value = metadata.get(_PREFIX + name, [])
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise VocabularyError(f"{path}: {_PREFIX}{name} is no list of {kind.__name__}")
    return value


def _id(metadata: Mapping[str, Any], path: Path, name: str, count: int) -> int | None:
    value = metadata.get(f"{_PREFIX}{name}_token_id")
    if value is None or value == 0xFFFFFFFF:  # what some writers put for "none"
        return None
    if type(value) is not int or not 0 <= value < count:
        raise VocabularyError(
            f"{path}: {_PREFIX}{name}_token_id is {value!r:.40}, there are {count:,} tokens"
        )
    return value


def _different(tokens: list[str], kinds: list[int], path: Path) -> list[str]:
    """The tokens; those that no text can become get names that do not occur again."""
    seen: set[str] = set()
    names = []
    for token_id, token in enumerate(tokens):
        if token in seen:
            if kinds[token_id] in (PieceKind.NORMAL, PieceKind.USER_DEFINED, PieceKind.BYTE):
                raise VocabularyError(f"{path}: the token {token!r:.60} occurs twice")
            token = f"{token}#{token_id}"
        seen.add(token)
        names.append(token)
    return names
