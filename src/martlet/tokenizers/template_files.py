"""What the files beside a tokenizer say about chats: the template, and the tokens that it names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from martlet.checkpoint.shards import read_json_object
from martlet.errors import ModelFileError

__all__ = ["read_chat_template", "read_special_tokens"]

_TEMPLATE = "chat_template.jinja"
_TEMPLATE_JSON = "chat_template.json"
_CONFIG = "tokenizer_config.json"
_SPECIAL = "special_tokens_map.json"
_MAX_TEMPLATE_BYTES = 1 << 20


def read_chat_template(files: Mapping[str, Path]) -> str | None:
    """The Jinja source of the template; of several by name, the one that is called "default".

    ``files`` are those of the tokenizer: {name: where it lies}.

    Raises:
        ModelFileError: it is no text of at most 1 MiB, or the file that holds it is malformed.
    """
    if _TEMPLATE in files:
        return _text_of(files[_TEMPLATE])
    place = _TEMPLATE_JSON if _TEMPLATE_JSON in files else _CONFIG
    given = _object_of(files, place).get("chat_template")
    if isinstance(given, list):
        entries = [entry for entry in given if isinstance(entry, dict)]
        given = next((e.get("template") for e in entries if e.get("name") == "default"), None)
    if given is None or given == "":
        return None
    if not isinstance(given, str) or len(given) > _MAX_TEMPLATE_BYTES:
        raise ModelFileError(
            f"{files[place]}: chat_template is no text of at most {_MAX_TEMPLATE_BYTES:,} "
            f"characters; take the model's own {place}"
        )
    return given


def read_special_tokens(files: Mapping[str, Path]) -> dict[str, str]:
    """The special tokens that a template may name, as "bos_token": "<s>".

    tokenizer_config.json comes before special_tokens_map.json; lists of further tokens are left
    out.

    Raises:
        ModelFileError: a file is malformed.
    """
    tokens: dict[str, str] = {}
    for name in (_SPECIAL, _CONFIG):
        for key, value in _object_of(files, name).items():
            content = value.get("content") if isinstance(value, dict) else value
            if key.endswith("_token") and isinstance(content, str):
                tokens[key] = content
    return tokens


def _object_of(files: Mapping[str, Path], name: str) -> Mapping[str, Any]:
    return read_json_object(files[name]) if name in files else {}


def _text_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_TEMPLATE_BYTES + 1)
        if len(raw) <= _MAX_TEMPLATE_BYTES:
            return raw.decode("utf-8")
        problem = f"is larger than {_MAX_TEMPLATE_BYTES:,} bytes"
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        problem = f"is not UTF-8: {error}"
    raise ModelFileError(f"{path}: {problem}; take the model's own chat template")
