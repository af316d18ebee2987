"""What a tokenizer.json holds: its pieces, and those that text must not reach."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from martlet.tokenizers.control_names import MARK, TokenNames
from martlet.tokenizers.special_names import SpecialNames

__all__ = ["LARGEST_ID", "State", "StatePieces", "hide_names", "read_pieces", "start_ids"]

LARGEST_ID = 10_000_000

State = dict[str, Any]

# Parts of a text that shows what a model thinks first: special in some vocabularies, but text.
_THOUGHT_MARKS = frozenset({"<think>", "</think>"})
# Added tokens that look like this steer a model where its chat template writes them.
_BRACKETED = re.compile(r"[^\w\s].*[^\w\s]", re.DOTALL)
# What names become here; text has no U+FDD0, so other pieces with it are never reached.
_HIDDEN = re.compile(f"{MARK}[0-9]")
# Normalizers that leave such a token as it is.
_KEEPING = frozenset({"NFC", "NFD", "NFKC", "NFKD"})
_FLAGS = ("single_word", "lstrip", "rstrip")


@dataclass(frozen=True)
class StatePieces:
    """The vocabulary of a tokenizer.json.

    Attributes:
        pieces: those of the model, by id.
        added: added tokens, by id.
        control: ids by name of tokens that steer the model and are never shown.
        visible: ids by name of tokens that text may spell and a template may mean, such as <think>.
    """

    pieces: Mapping[int, str]
    added: Mapping[int, str]
    control: Mapping[str, int]
    visible: Mapping[str, int]

    @property
    def all(self) -> dict[int, str]:
        """Every entry, by id."""
        return {**self.pieces, **self.added}


def read_pieces(state: State, names: SpecialNames) -> StatePieces:
    """The checked vocabulary.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the state is not of this form.
    """
    pieces = _by_id((i, piece) for piece, i in _entries(state["model"]["vocab"]))
    added_tokens = state.get("added_tokens") or []
    added = _by_id((token["id"], token["content"]) for token in added_tokens)
    known = names.all_names()
    control_ids = {token["id"] for token in added_tokens if token.get("special")}
    control_ids |= {i for table in (pieces, added) for i, piece in table.items() if piece in known}
    named = pieces | added
    control = {named[i]: i for i in control_ids if named[i] not in _THOUGHT_MARKS}
    keeps = _keeps_names(state.get("normalizer"))
    visible = {
        token["content"]: token["id"]
        for token in added_tokens
        if token["content"] not in control
        and not any(token.get(flag) for flag in _FLAGS)
        and (keeps or not token.get("normalized", True))
        and _BRACKETED.fullmatch(token["content"])
    }
    return StatePieces(pieces, added, control, visible)


def hide_names(state: State, pieces: StatePieces, names: TokenNames) -> State:
    """The state with tokens under names that no text can spell, ready for the library."""
    spelled = {**pieces.control, **pieces.visible}
    model = dict(state["model"])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {names.hidden(piece): i for piece, i in model["vocab"].items()}
    else:
        model["vocab"] = [[names.hidden(entry[0]), entry[1]] for entry in model["vocab"]]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = names.hidden(model["unk_token"])
    if "merges" in model:
        pairs = (m.split(" ") if isinstance(m, str) else list(m) for m in model["merges"])
        model["merges"] = [pair for pair in pairs if not spelled.keys() & {*pair, "".join(pair)}]
    whole = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        (whole | token | {"content": names.hidden(token["content"]), "normalized": False})
        if token["content"] in spelled
        else token
        for token in state.get("added_tokens") or []
    ]
    # Control tokens that are pieces alone become added ones: a template may write them.
    listed = set(pieces.added)
    added += [
        whole | {"id": token_id, "content": names.hidden(name), "special": True}
        for name, token_id in pieces.control.items()
        if token_id not in listed
    ]
    added.sort(key=lambda token: int(token["id"]))
    # Nothing is added, cut off or filled up here, so what describes that is left out.
    without = {"post_processor": None, "truncation": None, "padding": None}
    return state | without | {"model": model, "added_tokens": added}


def start_ids(state: State, names: SpecialNames, bos: int | None) -> tuple[int, ...]:
    """What the files of a tokenizer put before a text.

    The post-processor of tokenizer.json decides where there is one, as in transformers, else
    add_bos_token of tokenizer_config.json.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: the state is not of this form.
    """
    if state.get("post_processor") is None:
        return (bos,) if names.adds_bos and bos is not None else ()
    for step in _steps_of(state.get("post_processor"), "processors"):
        match step:
            case {"type": "TemplateProcessing", "single": list(parts), "special_tokens": special}:
                return _template_start(parts, special)
            case {"type": "BertProcessing" | "RobertaProcessing", "cls": [str(), int(token_id)]}:
                return (token_id,)
    return ()


def _template_start(parts: list[Any], special: Mapping[str, Any]) -> tuple[int, ...]:
    started: list[int] = []
    for part in parts:
        if "SpecialToken" not in part:
            break
        started += special[part["SpecialToken"]["id"]]["ids"]
    return tuple(_checked_id(token_id) for token_id in started)


def _by_id(entries: Iterable[tuple[Any, Any]]) -> dict[int, str]:
    table: dict[int, str] = {}
    for token_id, piece in entries:
        if not isinstance(piece, str):
            raise TypeError(f"the entry {piece!r:.80} is no text")
        if _HIDDEN.search(piece):
            raise ValueError(f"the entry {piece!r:.80} has U+FDD0, which is no character")
        if table.setdefault(_checked_id(token_id), piece) != piece:
            raise ValueError(f"{table[token_id]!r:.80} and {piece!r:.80} have the id {token_id}")
    return table


def _entries(vocabulary: Any) -> Iterable[tuple[str, int]]:
    """(piece, id) of a model's vocabulary: an object, or for Unigram a list of [piece, score]."""
    if isinstance(vocabulary, dict):
        return vocabulary.items()
    return ((entry[0], token_id) for token_id, entry in enumerate(vocabulary))


def _checked_id(value: object) -> int:
    if type(value) is not int or not 0 <= value < LARGEST_ID:
        raise ValueError(f"{value!r:.80} is no token id")
    return value


def _keeps_names(normalizer: Any) -> bool:
    """Whether tokens are found in normalised text as they are in the text itself."""
    return all(step.get("type") in _KEEPING for step in _steps_of(normalizer, "normalizers"))


def _steps_of(step: Any, key: str) -> list[dict[str, Any]]:
    """A step of the library's pipeline, or those of a sequence."""
    if step is None:
        return []
    return list(step[key]) if step.get("type") == "Sequence" else [step]
