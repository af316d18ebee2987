"""The tokenizer of a GGUF file as a tokenizer.json, and what stands beside it."""

from __future__ import annotations

from typing import Any

from martlet.errors import VocabularyError
from martlet.tokenizers.gguf_splits import SPLITS, Split
from martlet.tokenizers.gguf_vocabulary import GGUFVocabulary
from martlet.tokenizers.merges import merges_by_score
from martlet.tokenizers.piece_kind import PieceKind

__all__ = ["tokenizer_config", "tokenizer_state"]

_SPACE = "\u2581"
_Json = dict[str, Any]


def tokenizer_state(vocabulary: GGUFVocabulary) -> _Json:
    """What a tokenizer.json of this vocabulary holds.

    Raises:
        VocabularyError: it cuts words in a way that is not known here, or lacks what it needs.
    """
    kinds = vocabulary.kinds
    added = [
        {
            "id": token_id,
            "content": token,
            "special": kinds[token_id] != PieceKind.USER_DEFINED,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
        }
        for token_id, token in enumerate(vocabulary.tokens)
        if kinds[token_id] not in (PieceKind.NORMAL, PieceKind.BYTE)
    ]
    state = _byte_level(vocabulary) if vocabulary.model == "gpt2" else _pieces(vocabulary)
    return {"version": "1.0", "added_tokens": added, "post_processor": None} | state


def tokenizer_config(vocabulary: GGUFVocabulary) -> _Json:
    """What a tokenizer_config.json of this vocabulary holds."""
    config: _Json = {
        f"{role}_token": vocabulary.tokens[token_id] for role, token_id in vocabulary.roles.items()
    }
    wants_bos = vocabulary.model == "llama" or _split(vocabulary).adds_bos
    config["add_bos_token"] = vocabulary.flag("add_bos_token", wants_bos and "bos_token" in config)
    config["add_eos_token"] = vocabulary.flag("add_eos_token", False)
    return config


def _byte_level(vocabulary: GGUFVocabulary) -> _Json:
    split = _split(vocabulary)
    steps = split.steps(add_prefix_space=vocabulary.flag("add_space_prefix", False))
    return {
        "normalizer": {"type": "NFC"} if split.is_composed else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "decoder": steps[-1],
        "model": {
            "type": "BPE",
            "vocab": {token: token_id for token_id, token in enumerate(vocabulary.tokens)},
            "merges": _checked_merges(vocabulary),
            "ignore_merges": split.ignores_merges,
        },
    }


def _split(vocabulary: GGUFVocabulary) -> Split:
    name = vocabulary.word("pre")
    split = SPLITS.get(name or "")
    if split is None:
        raise VocabularyError(
            f"{vocabulary.path}: tokenizer.ggml.pre is {name!r:.40}, which is not known; known "
            f"are {', '.join(SPLITS)}; convert the file with --tokenizer and the tokenizer.json "
            f"of the model"
        )
    return split


def _checked_merges(vocabulary: GGUFVocabulary) -> list[list[str]]:
    """The pairs in their order, each of two tokens whose sum is one."""
    known = set(vocabulary.tokens)
    merges = []
    for line in vocabulary.merges:
        pair = line.split(" ")
        if len(pair) != 2 or not known.issuperset((*pair, "".join(pair))):
            raise VocabularyError(
                f"{vocabulary.path}: the merge {line!r:.80} is not of two tokens that make a third"
            )
        merges.append(pair)
    return merges


def _pieces(vocabulary: GGUFVocabulary) -> _Json:
    """SentencePiece's pairs: of all neighbours, those are joined that give the best piece."""
    unknown = vocabulary.roles.get("unk")
    has_prefix = vocabulary.flag("add_space_prefix", True)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    prefix = [{"type": "Prepend", "prepend": _SPACE}] if has_prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if has_prefix else []
    back = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
    steps = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prefix, spaces]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": steps},
        "model": {
            "type": "BPE",
            "vocab": {token: token_id for token_id, token in enumerate(vocabulary.tokens)},
            "merges": _merges_by_score(vocabulary),
            "unk_token": None if unknown is None else vocabulary.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": True,
        },
    }


def _merges_by_score(vocabulary: GGUFVocabulary) -> list[list[str]]:
    """All pairs of pieces that make a piece, those of the best piece first.

    Raises:
        VocabularyError: there are no scores, or pieces too long to be cut in every way.
    """
    entries = zip(vocabulary.tokens, vocabulary.kinds, vocabulary.scores, strict=True)
    scores = {token: score for token, kind, score in entries if kind == PieceKind.NORMAL}
    merges = merges_by_score(scores, vocabulary.path)
    if not any(vocabulary.scores):
        raise VocabularyError(
            f"{vocabulary.path}: tokenizer.ggml.model is llama, but there are no scores"
        )
    return merges
