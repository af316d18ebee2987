"""Reads the numbers and strings in the head of a GGUF file; nothing is believed before it is there.

Everything is little-endian. A string is a u64 length and so many bytes of UTF-8; an array is the
u32 type of its elements, their u64 number and the elements one behind the other.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from martlet.errors import ModelFileError

__all__ = ["Cursor", "Value"]

Value = bool | int | float | str | list[bool] | list[int] | list[float] | list[str]

MAX_HEAD_BYTES = 128 << 20
MAX_ARRAY_ELEMENTS = 1 << 20
MAX_ALL_ELEMENTS = 1 << 21
MAX_STRING_BYTES = 16 << 20

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_FIRST_READ_BYTES = 1 << 16


class Cursor:
    """A place in the head of a file that moves on as values are read."""

    def __init__(self, path: Path, file: BinaryIO, size_bytes: int) -> None:
        self._path = path
        self._file = file
        self._limit = min(size_bytes, MAX_HEAD_BYTES)
        self._is_cut_by_cap = size_bytes > MAX_HEAD_BYTES
        self._data = b""
        self._elements = 0
        self.position = 0

    def take(self, nbytes: int, what: str) -> bytes:
        """The next bytes.

        Raises:
            ModelFileError: the file, or the longest head that is allowed, ends before.
        """
        self._require(nbytes, what)
        start = self.position
        self.position += nbytes
        return self._data[start : self.position]

    def number(self, code: str, what: str) -> int:
        """The next integer, ``code`` as in the module struct."""
        value = struct.unpack("<" + code, self.take(struct.calcsize(code), what))[0]
        assert isinstance(value, int)
        return value

    def string(self, what: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        """The next string.

        Raises:
            ModelFileError: longer than allowed, cut off, or not UTF-8.
        """
        length = self.number("Q", f"the length of {what}")
        if length > max_bytes:
            raise self.error(f"{what} claims {length:,} bytes, the limit is {max_bytes:,}")
        return self._text(self.take(length, what), what)

    def value(self, key: str) -> Value:
        """The next value of the metadata, its type before it.

        Raises:
            ModelFileError: an unknown type, an array in an array, or more than the limits allow.
        """
        kind = self.number("I", f"the type of {key}")
        if kind != _ARRAY:
            return self._scalar(kind, key)
        kind = self.number("I", f"the type of {key}")
        count = self.number("Q", f"the length of {key}")
        self._elements += min(count, MAX_ALL_ELEMENTS)
        if count > MAX_ARRAY_ELEMENTS or self._elements > MAX_ALL_ELEMENTS:
            raise self.error(
                f"{key} claims {count:,} elements; the limits are {MAX_ARRAY_ELEMENTS:,} for one "
                f"array and {MAX_ALL_ELEMENTS:,} for all"
            )
        if kind == _STRING:
            return self._strings(count, key)
        if kind == _BOOL:
            return [self._flag(byte, key) for byte in self.take(count, key)]
        code = self._code(kind, key)
        data = self.take(count * struct.calcsize(code), key)
        return list(struct.unpack(f"<{count}{code}", data))

    def error(self, problem: str) -> ModelFileError:
        """The error that something is wrong in the head of this file; to be raised."""
        return ModelFileError(f"{self._path}: {problem}; fetch the file again")

    def _scalar(self, kind: int, key: str) -> Value:
        if kind == _STRING:
            return self.string(key)
        if kind == _BOOL:
            return self._flag(self.take(1, key)[0], key)
        code = self._code(kind, key)
        value = struct.unpack("<" + code, self.take(struct.calcsize(code), key))[0]
        assert isinstance(value, int | float)
        return value

    def _code(self, kind: int, key: str) -> str:
        if kind == _ARRAY:
            raise self.error(f"{key} is an array of arrays, which no known file has")
        if kind not in _NUMBERS:
            raise self.error(f"{key} has a value of type {kind}; known are 0 to 12")
        return _NUMBERS[kind]

    def _flag(self, byte: int, key: str) -> bool:
        if byte > 1:
            raise self.error(f"{key} is a bool of value {byte}, it can be 0 or 1")
        return byte == 1

    def _strings(self, count: int, key: str) -> list[str]:
        # There may be a million of them, so this does by hand what ``string`` does.
        self._require(8 * count, key)
        strings = []
        for _ in range(count):
            begin = self.position + 8
            length = int.from_bytes(self._data[self.position : begin], "little")
            end = begin + length
            if end + 8 > len(self._data):
                self.position = begin - 8
                self._require(8, key)
                length = int.from_bytes(self._data[self.position : begin], "little")
                self._require(8 + length, key)
                end = begin + length
            try:
                strings.append(self._data[begin:end].decode())
            except UnicodeDecodeError:
                self._text(self._data[begin:end], key)
            self.position = end
        return strings

    def _text(self, data: bytes, what: str) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is not UTF-8: {error.reason}") from None

    def _require(self, nbytes: int, what: str) -> None:
        """Have so many bytes from here on in memory, reading on in ever larger pieces."""
        end = self.position + nbytes
        if end <= len(self._data):
            return
        if end > self._limit:
            where = f"the limit of {self._limit:,} bytes" if self._is_cut_by_cap else "the end"
            raise self.error(
                f"{what:.80} needs {nbytes:,} bytes from byte {self.position:,} on, which is "
                f"beyond {where} of the {'head' if self._is_cut_by_cap else 'file'}"
            )
        target = min(self._limit, max(end, 2 * len(self._data), _FIRST_READ_BYTES))
        try:
            more = self._file.read(target - len(self._data))
        except OSError as error:
            raise ModelFileError(f"{self._path}: cannot be read: {error.strerror}") from error
        self._data += more
        if end > len(self._data):
            raise self.error(f"the file ends inside {what:.80}; it was cut while it was opened")
