"""The keys of one architecture in a GGUF file, read by name and type; what nobody reads is told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from numpy import finfo, float32

from martlet.checkpoint.gguf import Value
from martlet.errors import ModelFileError

__all__ = ["ArchitectureKeys", "shortest_decimal"]

_MAX_SIZE = 1 << 24
_LARGEST_FLOAT32 = float(finfo(float32).max)

# What says how a model was made or where it may be used, not what it computes.
_HARMLESS = frozenset({"rope.scaling.finetuned", "tensor_data_layout", "vocab_size"})


class ArchitectureKeys:
    """The keys that begin with the name of the architecture, which is left out here."""

    def __init__(self, path: Path, metadata: Mapping[str, Value]) -> None:
        self.path = path
        name = metadata.get("general.architecture")
        if not isinstance(name, str) or not name:
            raise ModelFileError(
                f"{path}: general.architecture is {name!r:.40}, expected the name of a language "
                f"model's architecture; the file holds something else or is not complete"
            )
        self.architecture = name
        prefix = name + "."
        self._values = {
            key.removeprefix(prefix): value
            for key, value in metadata.items()
            if key.startswith(prefix)
        }
        self._read: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is such a key."""
        self._read.add(name)
        return name in self._values

    def size(self, name: str, default: int | None = None) -> int:
        """A positive integer; of a list with one for each layer, the one that all of them are.

        Raises:
            ModelFileError: the key is missing and has no default, or is no such integer.
        """
        value = self._value(name, default)
        if isinstance(value, list) and value and all(item == value[0] for item in value):
            value = value[0]
        if type(value) is not int or not 0 < value <= _MAX_SIZE:
            raise self.bad(name, value, f"one integer from 1 to {_MAX_SIZE:,} for all layers")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number above zero.

        Raises:
            ModelFileError: the key is missing and has no default, or is something else.
        """
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, value, "a number")
        if not math.isfinite(value) or value <= 0:
            raise self.bad(name, value, "a finite number above 0")
        return shortest_decimal(float(value))

    def word(self, name: str, default: str, choices: tuple[str, ...]) -> str:
        """One of a few words.

        Raises:
            ModelFileError: the key is something else.
        """
        value = self._value(name, default)
        if not isinstance(value, str) or value not in choices:
            raise self.bad(name, value, " or ".join(choices))
        return value

    def value(self, name: str) -> Value | None:
        """What the key holds, None where there is none."""
        self._read.add(name)
        return self._values.get(name)

    def require(self, name: str, only: Value) -> None:
        """Refuse a key whose value changes results in a way that is not implemented here.

        Raises:
            ModelFileError: the key is there and not ``only``.
        """
        if self.has(name) and self._values[name] != only:
            raise self.bad(name, self._values[name], f"{only!r} alone")

    def refuse_unknown(self) -> None:
        """Refuse what nobody has asked for: it may stand for something that changes results.

        Raises:
            ModelFileError: there is such a key; the message names it.
        """
        for name, value in self._values.items():
            if value not in (0, False, "", []) and name not in self._read | _HARMLESS:
                raise ModelFileError(
                    f"{self.path}: has the key {self.architecture}.{name:.60} = {value!r:.40}, "
                    f"which is not known here and may change what the model computes; take the "
                    f"safetensors of the model instead"
                )

    def bad(self, name: str, value: object, supported: str) -> ModelFileError:
        """The error that a key has a value other than what is supported; to be raised."""
        return ModelFileError(
            f"{self.path}: {self.architecture}.{name} is {value!r:.60}; supported is {supported}"
        )

    def _value(self, name: str, default: Value | None) -> Value:
        value = self._values[name] if self.has(name) else default
        if value is None:
            raise ModelFileError(
                f"{self.path}: has no key {self.architecture}.{name}; the file is not complete"
            )
        return value


def shortest_decimal(value: float) -> float:
    """The number with the fewest decimal digits that is the same float32; others stay.

    Files hold 1e-5 as 9.99999975e-6; what was meant is the former.
    """
    if not math.isfinite(value) or abs(value) > _LARGEST_FLOAT32:
        return value
    rounded = float32(value)
    return float(str(rounded)) if float(rounded) == value else value
