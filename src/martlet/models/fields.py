"""Reading fields of a config.json that nobody has checked yet."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from martlet.errors import ModelFileError

__all__ = ["Fields"]

# Above anything that exists, and low enough that a hostile size cannot make us build for hours.
_MAX_SIZE = 1 << 24


@dataclass(frozen=True)
class Fields:
    """The fields of a config.json, read by name and type; a bad one is named in the error."""

    config: Mapping[str, Any]

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.config.get(name) is not None

    def size(self, name: str, default: int | None = None, *, limit: int = _MAX_SIZE) -> int:
        """A positive integer of at most ``limit``.

        Raises:
            ModelFileError: the field is missing and has no default, or is no such integer.
        """
        value = self.config[name] if self.has(name) else default
        if value is None:
            raise ModelFileError(f"config.json lacks the field {name!r}; it is not complete")
        if type(value) is not int or not 0 < value <= limit:
            raise self.bad(name, value, f"an integer from 1 to {limit:,}")
        return value

    def positive(self, name: str, default: float) -> float:
        """A finite number above zero.

        Raises:
            ModelFileError: the field is something else.
        """
        value = self.config[name] if self.has(name) else default
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, value, "a number")
        if not math.isfinite(value) or value <= 0:
            raise self.bad(name, value, "a finite number above 0")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        """True or false.

        Raises:
            ModelFileError: the field is something else.
        """
        value = self.config[name] if self.has(name) else default
        if not isinstance(value, bool):
            raise self.bad(name, value, "true or false")
        return value

    def choice(self, name: str, default: str, choices: Collection[str]) -> str:
        """One of a few words.

        Raises:
            ModelFileError: the field is another word or no word.
        """
        value = self.config[name] if self.has(name) else default
        if not isinstance(value, str) or value not in choices:
            raise self.bad(name, value, "one of " + ", ".join(sorted(choices)))
        return value

    def require(self, name: str, only: object) -> None:
        """Refuse a field whose value changes results in a way that is not implemented here.

        Raises:
            ModelFileError: the field is there and not ``only``.
        """
        if self.has(name) and self.config[name] != only:
            raise self.bad(name, self.config[name], f"{only!r} alone")

    def bad(self, name: str, value: object, supported: str) -> ModelFileError:
        """The error that a field has a value other than what is supported; to be raised."""
        shown = repr(value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        return ModelFileError(f"config.json has {name} = {shown}; supported is {supported}")
