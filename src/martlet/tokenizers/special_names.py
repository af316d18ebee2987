"""Which tokens of a Hugging Face folder steer the model, from its configuration files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from martlet.errors import ModelFileError
from martlet.tokenizers.tokenizer import SpecialTokens
from martlet.tokenizers.vocabulary import read_tokenizer_file

__all__ = [
    "SpecialNames",
    "read_json_object",
    "read_optional_object",
    "read_special_names",
    "sentinel_number",
]

_ROLES = ("unk", "bos", "eos", "pad", "sep", "mask")
_SENTINEL = re.compile("\u2581?<extra_id_([0-9]{1,4})>")  # mT5 writes a word start before it


@dataclass(frozen=True)
class SpecialNames:
    """What the files of a folder say about special tokens.

    ``names`` maps a role ("eos") to a token, ``ids`` (from config.json) a role to an id.
    ``added`` are entries of tokenizer_config.json's added_tokens_decoder in the form of
    tokenizer.json's added_tokens. ``adds_bos`` tells whether a text begins with bos, None where
    nothing does.
    """

    names: dict[str, str]
    ids: dict[str, int]
    additional: tuple[str, ...]
    extra_ids: int | None
    added: tuple[dict[str, Any], ...] = ()
    adds_bos: bool | None = None

    def all_names(self) -> frozenset[str]:
        """Every token that is named, whatever its role."""
        return frozenset((*self.names.values(), *self.additional))

    def resolve(self, control: Mapping[str, int]) -> SpecialTokens:
        """The ids of the special tokens; all of them together are those of ``control``.

        An id from config.json counts only where it is a control token: some configurations name
        an ordinary token as padding.

        Args:
            control: id by name of every control token of the vocabulary.
        """
        control_ids = set(control.values())
        sentinels = {
            number: token_id
            for name, token_id in control.items()
            if (number := sentinel_number(name)) is not None
        }
        roles: dict[str, Any] = {}
        for role in _ROLES:
            found = control.get(self.names[role]) if role in self.names else None
            if found is None and self.ids.get(role) in control_ids:
                found = self.ids[role]
            roles[role] = found
        in_order = tuple(sentinels[number] for number in sorted(sentinels))
        special = replace(SpecialTokens(), **roles, sentinels=in_order)
        return replace(special, others=tuple(sorted(control_ids - special.control_ids())))


def sentinel_number(name: str) -> int | None:
    """The number in T5's <extra_id_NUMBER>, None for other tokens."""
    match = _SENTINEL.fullmatch(name)
    return int(match[1]) if match else None


def read_special_names(folder: Path) -> SpecialNames:
    """What tokenizer_config.json, special_tokens_map.json and config.json say, in this order.

    Raises:
        ModelFileError: one of them is there but is not JSON.
    """
    tokenizer_config = read_optional_object(folder / "tokenizer_config.json")
    special_map = read_optional_object(folder / "special_tokens_map.json")
    config = read_optional_object(folder / "config.json")
    names: dict[str, str] = {}
    for role in _ROLES:
        for source in (tokenizer_config, special_map):
            if (name := _token_text(source.get(f"{role}_token"))) is not None:
                names.setdefault(role, name)
    ids: dict[str, int] = {}
    for role in _ROLES:
        value = config.get(f"{role}_token_id")
        if isinstance(value, list) and value:
            value = value[0]  # several ends: the first is the document's
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            ids[role] = value
    listed = tokenizer_config.get("additional_special_tokens") or special_map.get(
        "additional_special_tokens"
    )
    additional = filter(None, map(_token_text, listed if isinstance(listed, list) else []))
    extra_ids = tokenizer_config.get("extra_ids")
    return SpecialNames(
        names=names,
        ids=ids,
        additional=tuple(additional),
        extra_ids=extra_ids if isinstance(extra_ids, int) and 0 <= extra_ids < 10_000 else None,
        added=_added(
            tokenizer_config.get("added_tokens_decoder"),
            read_optional_object(folder / "added_tokens.json"),
        ),
        adds_bos=bos if type(bos := tokenizer_config.get("add_bos_token")) is bool else None,
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ModelFileError: the file cannot be read or holds no JSON object.
    """
    try:
        value = json.loads(read_tokenizer_file(path))
    except (ValueError, RecursionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ModelFileError(f"{path} is not JSON: {reason}; fetch the model again") from None
    if not isinstance(value, dict):
        raise ModelFileError(
            f"{path} holds a JSON {type(value).__name__}, not an object; fetch the model again"
        )
    return value


def _added(listed: object, more: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """Tokens in the order of their ids: tokenizer_config.json's, and of added_tokens.json more.

    What is not of this form is passed over.
    """
    plain = {"normalized": False, "special": False}
    tokens = {
        token_id: plain | {"content": content, "id": token_id}
        for content, token_id in more.items()
        if type(token_id) is int and token_id >= 0 and content
    }
    for key, token in listed.items() if isinstance(listed, dict) else ():
        is_id = key.isascii() and key.isdigit() and len(key) < 9
        if is_id and isinstance(token, dict) and _token_text(token) is not None:
            tokens[int(key)] = {**token, "id": int(key)}
    return tuple(tokens[token_id] for token_id in sorted(tokens))


def read_optional_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, empty where there is no file.

    Raises:
        ModelFileError: the file cannot be read or holds no JSON object.
    """
    return read_json_object(path) if path.exists() else {}


def _token_text(value: object) -> str | None:
    """A token is written as a string or as an object with its text as content."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None
