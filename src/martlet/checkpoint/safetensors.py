"""Our own reader of safetensors files: every number is checked before anything is mapped.

Layout of a file: u64 little-endian length of the header, the header as JSON, the data. The header
maps a tensor's name to ``{"dtype": "F16", "shape": [2, 3], "data_offsets": [begin, end]}``, where
offsets count from the first byte of the data; ``__metadata__`` maps strings to strings.
"""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from martlet.checkpoint.mapped import MappedFile, file_size_bytes
from martlet.errors import ModelFileError

__all__ = [
    "DTYPES",
    "DTYPE_NAMES",
    "MAX_ENTRIES",
    "MAX_HEADER_BYTES",
    "Header",
    "TensorEntry",
    "TensorMap",
    "check_tensor_name",
    "map_tensors",
    "read_header",
    "unique_object",
]

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 16 << 20
MAX_ENTRIES = 200_000
_MAX_NAME_CHARACTERS = 512
_MAX_DIMENSIONS = 8
_MAX_ELEMENTS = 1 << 60  # keeps every product inside the 64 bits that torch computes with
_METADATA = "__metadata__"
_ENTRY_KEYS = {"dtype", "shape", "data_offsets"}


class TensorEntry(NamedTuple):
    """Where a tensor lies.

    Units:
        offset: bytes from the start of the file.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """What a file holds, all of it checked; ``tensors`` is in the order of the file."""

    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]
    data_offset: int
    size_bytes: int


class TensorMap(Mapping[str, Tensor]):
    """The tensors of one file by name, each a view of the mapped file, made when asked for."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.file = MappedFile(header.path)
        if self.file.size_bytes != header.size_bytes:
            raise ModelFileError(
                f"{header.path}: size changed from {header.size_bytes:,} to "
                f"{self.file.size_bytes:,} bytes while it was opened"
            )

    def __getitem__(self, name: str) -> Tensor:
        entry = self.header.tensors[name]
        return self.file.tensor(entry.offset, entry.dtype, entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.tensors)

    def __len__(self) -> int:
        return len(self.header.tensors)


def map_tensors(path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> TensorMap:
    """The tensors of a safetensors file, without copying: pages are read when touched.

    Raises:
        ModelFileError: the file is not a sound safetensors file.
    """
    return TensorMap(read_header(path, max_header_bytes=max_header_bytes))


def read_header(path: Path, *, max_header_bytes: int = MAX_HEADER_BYTES) -> Header:
    """The checked header of a safetensors file.

    Raises:
        ModelFileError: truncated, malformed, too large, an unknown dtype, a range that does not
            fit dtype and shape, lies outside the file, overlaps another or leaves a hole.
    """
    size_bytes = file_size_bytes(path)
    try:
        with path.open("rb") as file:
            start = file.read(8)
            if len(start) < 8:
                raise ModelFileError(
                    f"{path}: {size_bytes} bytes are too few for a safetensors file"
                )
            header_bytes = int.from_bytes(start, "little")
            limit = min(max_header_bytes, size_bytes - 8)
            if not 2 <= header_bytes <= limit:
                raise ModelFileError(
                    f"{path}: the header claims {header_bytes:,} bytes, at most {limit:,} are "
                    f"possible; the file is truncated or not a safetensors file"
                )
            raw = file.read(header_bytes)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    if len(raw) != header_bytes:
        raise ModelFileError(f"{path}: the file ends inside its header")
    # A large header makes a million objects and not one cycle; looking for cycles again and again
    # would double the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _check_header(path, raw, size_bytes)
    finally:
        if collecting:
            gc.enable()


def _check_header(path: Path, raw: bytes, size_bytes: int) -> Header:
    table = _parse_json(path, raw)
    metadata = _check_metadata(path, table.pop(_METADATA, {}))
    if len(table) > MAX_ENTRIES:
        raise ModelFileError(f"{path}: {len(table):,} tensors, the limit is {MAX_ENTRIES:,}")
    data_offset = 8 + len(raw)
    entries = [_check_entry(path, name, value, data_offset) for name, value in table.items()]
    entries.sort(key=lambda entry: (entry.offset, entry.nbytes))
    _check_ranges(path, entries, data_offset, size_bytes)
    return Header(
        path=path,
        tensors={entry.name: entry for entry in entries},
        metadata=metadata,
        data_offset=data_offset,
        size_bytes=size_bytes,
    )


def check_tensor_name(name: str) -> str | None:
    """What is wrong with a tensor's name, or None."""
    if not name:
        return "an empty tensor name"
    if len(name) > _MAX_NAME_CHARACTERS:
        return f"a tensor name of {len(name):,} characters, the limit is {_MAX_NAME_CHARACTERS}"
    if not name.isprintable():
        return f"an unprintable tensor name {name!r:.80}"
    return None


def unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys are all different; for ``json.loads(object_pairs_hook=...)``.

    Raises:
        ValueError: a key occurs twice.
    """
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"duplicate key {key!r:.80}")
            seen.add(key)
    return result


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    # An entry needs one brace, two brackets and a few commas. Counting them first bounds what the
    # parser can be made to allocate: a list costs 30 times its two characters.
    brackets = raw.count(b"{") + raw.count(b"[")
    commas = raw.count(b",")
    if brackets > 4 * MAX_ENTRIES or commas > (4 + _MAX_DIMENSIONS) * MAX_ENTRIES:
        raise ModelFileError(
            f"{path}: the header has {brackets:,} lists and {commas:,} commas, "
            f"more than {MAX_ENTRIES:,} tensors can need"
        )
    try:
        table = json.loads(raw.decode("utf-8"), object_pairs_hook=unique_object)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the header is not valid JSON: {error}") from error
    if not isinstance(table, dict):
        raise ModelFileError(f"{path}: the header is not a JSON object")
    return table


def _check_metadata(path: Path, metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict):
        raise ModelFileError(f"{path}: {_METADATA} is not an object")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise ModelFileError(f"{path}: {_METADATA} entry {key!r:.80} is not a string")
    return metadata


def _check_entry(path: Path, name: str, value: Any, data_offset: int) -> TensorEntry:
    # A hostile header has 10^5 of these, so the usual case takes few steps.
    if not name.isprintable() or not 0 < len(name) <= _MAX_NAME_CHARACTERS:
        raise ModelFileError(f"{path}: {check_tensor_name(name)}")
    if type(value) is not dict or len(value) != 3 or not value.keys() >= _ENTRY_KEYS:
        raise ModelFileError(f"{path}: {name}: needs exactly dtype, shape and data_offsets")
    dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    dtype = DTYPES.get(dtype_name) if type(dtype_name) is str else None
    if dtype is None:
        raise ModelFileError(
            f"{path}: {name}: dtype {dtype_name!r:.40} is not one of {', '.join(DTYPES)}"
        )
    if not _is_sizes(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ModelFileError(f"{path}: {name}: shape {shape!r:.80} is not a list of sizes")
    count = math.prod(shape)
    # With a zero among them the others may still multiply to more than 64 bits.
    if (count or math.prod(filter(None, shape))) > _MAX_ELEMENTS:
        raise ModelFileError(f"{path}: {name}: shape {shape!r:.80} is too large")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise ModelFileError(f"{path}: {name}: data_offsets {offsets!r:.80} is not a pair")
    begin, end = offsets
    nbytes = count * dtype.itemsize
    if end - begin != nbytes:
        raise ModelFileError(
            f"{path}: {name}: {dtype_name} {shape} needs {nbytes:,} bytes, "
            f"data_offsets {offsets} give {end - begin:,}"
        )
    return TensorEntry(name, dtype, tuple(shape), data_offset + begin, nbytes)


def _is_sizes(value: Any) -> bool:
    if type(value) is not list:
        return False
    return not value or (
        set(map(type, value)) == {int} and min(value) >= 0 and max(value) <= _MAX_ELEMENTS
    )


def _check_ranges(
    path: Path, entries: list[TensorEntry], data_offset: int, size_bytes: int
) -> None:
    end = data_offset
    for entry in entries:
        if entry.offset != end:
            what = "overlaps the tensor before it" if entry.offset < end else "leaves a hole"
            raise ModelFileError(
                f"{path}: {entry.name} starts at byte {entry.offset:,}, expected {end:,}: it {what}"
            )
        end += entry.nbytes
    if end != size_bytes:
        what = "truncated" if end > size_bytes else "followed by bytes that belong to no tensor"
        raise ModelFileError(
            f"{path}: the tensors end at byte {end:,}, the file has {size_bytes:,}: it is {what}; "
            "fetch the file again"
        )
