"""Fields of a JSON file that anybody may have written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from martlet.checkpoint.safetensors import check_tensor_name
from martlet.checkpoint.shards import plain_file_name
from martlet.errors import ModelFileError

__all__ = ["JsonCheck"]

_MAX_OFFSET = 1 << 50


@dataclass(frozen=True)
class JsonCheck:
    """Fields of untrusted JSON objects, or an error that names file and field.

    Raises:
        ModelFileError: by all methods, a field is not what it must be.
    """

    path: Path

    def fail(self, problem: str) -> ModelFileError:
        """The error to raise: the file and what is wrong with it."""
        return ModelFileError(f"{self.path}: {problem}")

    def mapping(self, value: object, what: str) -> dict[str, object]:
        """An object; ``what`` is what to call it."""
        if not isinstance(value, dict):
            raise self.fail(f"{what} is not an object")
        return value

    def choice(self, raw: dict[str, object], key: str, choices: tuple[str, ...]) -> str:
        """One of some words."""
        value = raw.get(key)
        if value not in choices:
            raise self.fail(f"{key} is {value!r:.40}, expected one of {', '.join(choices)}")
        return str(value)

    def text(self, raw: dict[str, object], key: str) -> str:
        """A name, which may be empty."""
        value = raw.get(key)
        if not isinstance(value, str) or (value and check_tensor_name(value)):
            raise self.fail(f"{key} is {value!r:.40}, not a name")
        return value

    def size(self, raw: dict[str, object], key: str) -> int:
        """A number of bytes."""
        value = raw.get(key)
        if type(value) is not int or not 0 <= value <= _MAX_OFFSET:
            raise self.fail(f"{key} is {value!r:.40}, not a number of bytes")
        return value

    def items(self, raw: dict[str, object], key: str, limit: int) -> list[object]:
        """A list of so many entries at most."""
        value = raw.get(key)
        if not isinstance(value, list) or len(value) > limit:
            raise self.fail(f"{key} is not a list of at most {limit:,} entries")
        return value

    def file_name(self, value: object) -> str:
        """The name of a file in the same folder."""
        if not plain_file_name(value):
            raise self.fail(f"{value!r:.80} is not a plain file name")
        return str(value)
