"""Sampling parameters that a person changes between two answers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from martlet.cli.options import SamplingOptions
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.engine.request import SamplingParams

__all__ = ["Settings"]

_NAMES = tuple(field.name for field in dataclasses.fields(SamplingOptions))
_WHOLE = ("max_tokens", "top_k", "seed")
_DEFAULT = "default"


class Settings:
    """What was given on the command line or by /set; everything else is left to the model."""

    names = _NAMES

    def __init__(self, given: Mapping[str, Any]) -> None:
        self._given = dict(given)

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments of the model's methods."""
        return dict(self._given)

    def set(self, text: str) -> str:
        """Carry out "NAME VALUE", or "NAME default"; what to tell the person.

        Raises:
            UsageError: no such parameter, or a value out of range.
        """
        from martlet.engine.request import SamplingParams

        name, _, value = text.strip().partition(" ")
        name, value = name.replace("-", "_"), value.strip()
        if name not in _NAMES:
            raise UsageError(f"{name!r:.40} cannot be set; there are {', '.join(_NAMES)}")
        if not value:
            raise UsageError(f"give {name} a value, as in /set {name} {_example(name)}")
        if value == _DEFAULT:
            self._given.pop(name, None)
            return f"{name} is left to the model"
        parsed = _parsed(name, value)
        checked = SamplingParams.from_fields({name: parsed})
        self._given[name] = getattr(checked, name)
        return f"{name} is {_shown(self._given[name])}"

    def describe(self, in_force: SamplingParams) -> list[tuple[str, str]]:
        """All parameters with their values; those that are not the model's own say so."""
        values = dataclasses.asdict(in_force)
        return [
            (name, _shown(values[name]) + (" (set)" if name in self._given else ""))
            for name in _NAMES
        ]


def _example(name: str) -> str:
    return {"max_tokens": "200", "top_k": "40", "seed": "1", "stop": "END"}.get(name, "0.8")


def _parsed(name: str, value: str) -> Any:
    if name == "stop":
        return _parsed_stop(value)
    try:
        return int(value) if name in _WHOLE else float(value)
    except ValueError:
        kind = "a whole number" if name in _WHOLE else "a number"
        raise UsageError(
            f"{name} is {value!r:.40}; it must be {kind}, or {_DEFAULT} for the model's own"
        ) from None


def _parsed_stop(value: str) -> Any:
    """A text as it stands, or a JSON list of several with escapes."""
    if not value.startswith("["):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise UsageError(
            f'stop is {value!r:.40}; it must be a text or a JSON list, as in ["END", "\\n"]'
        ) from None


def _shown(value: object) -> str:
    if value is None:
        return "any"
    if isinstance(value, list | tuple):
        return json.dumps(value, ensure_ascii=False) if value else "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
