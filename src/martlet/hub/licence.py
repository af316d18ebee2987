"""Under which licence a model came, as far as its own files tell."""

from __future__ import annotations

import re
from pathlib import Path

from martlet.checkpoint.gguf import read_gguf_header
from martlet.errors import MartletError

__all__ = ["read_licence"]

_CARDS = ("README.md", "MODEL_CARD.md")
_LONGEST_FRONT_BYTES = 64 << 10
_LONGEST_NAME = 100
_LINE = re.compile(r"^(license|license_name):[ \t]*[\"']?([^\"'\r\n#]+?)[\"']?[ \t\r]*$", re.M)


def read_licence(model: Path) -> str | None:
    """The licence that a GGUF file or the card of a model folder names; None where none does."""
    if model.is_file():
        return _of_gguf(model)
    for name in _CARDS:
        if licence := _of_card(model / name):
            return licence
    return None


def _of_card(card: Path) -> str | None:
    """From the lines between the first two "---" of a card, which are YAML of a simple kind."""
    try:
        with card.open("rb") as file:
            text = file.read(_LONGEST_FRONT_BYTES).decode(errors="replace")
    except OSError:
        return None
    if not text.startswith("---"):
        return None
    front = text[3:].partition("\n---")[0]
    named = {match[1]: match[2] for match in _LINE.finditer(front)}
    licence = named.get("license")
    # "other" is what a card says whose licence has a name of its own.
    return _printable(named.get("license_name", licence) if licence == "other" else licence)


def _of_gguf(file: Path) -> str | None:
    try:
        value = read_gguf_header(file).metadata.get("general.license")
    except MartletError:
        return None
    return _printable(value if isinstance(value, str) else None)


def _printable(name: str | None) -> str | None:
    return name[:_LONGEST_NAME] if name and name.isprintable() else None
