"""Our own reader of GGUF files, versions 2 and 3: every number is checked before it is used.

Layout of a file, little-endian: "GGUF", u32 version, u64 number of tensors, u64 number of keys;
the keys (name, type, value); the tensors (name, u32 number of axes, u64 sizes, fastest first, u32
type, u64 offset); padding up to the alignment; the data, from where the offsets count.
"""

from __future__ import annotations

import gc
import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from martlet.checkpoint.gguf_cursor import Cursor, Value
from martlet.checkpoint.mapped import file_size_bytes
from martlet.checkpoint.safetensors import check_tensor_name
from martlet.errors import ModelFileError
from martlet.quantization.block_types import BLOCK_TYPES, BlockType

__all__ = ["MAGIC", "GGUFHeader", "GGUFTensor", "Value", "read_gguf_header"]

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_BEFORE_GGUF = (b"lmgg", b"fmgg", b"tjgg", b"algg")
_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 16
_MAX_KEY_BYTES = (1 << 16) - 1
_MAX_NAME_BYTES = 64
_MAX_AXES = 4
_MAX_ELEMENTS = 1 << 60  # keeps every product inside the 64 bits that torch computes with
_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 1 << 20
# The fewest bytes that a key (empty name, a byte) and a tensor (one axis) take.
_KEY_BYTES, _TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 8 + 4 + 8


class GGUFTensor(NamedTuple):
    """Where a tensor lies; ``shape`` has its slowest axis first, as torch has it.

    Units:
        offset: bytes from the start of the file.
    """

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """What a file holds, all of it checked; ``tensors`` is in the order of the file's list."""

    path: Path
    version: int
    metadata: dict[str, Value]
    tensors: dict[str, GGUFTensor]
    data_offset: int
    size_bytes: int


def read_gguf_header(path: Path) -> GGUFHeader:
    """The checked head of one GGUF file.

    Raises:
        ModelFileError: not such a file, of another version or byte order, truncated, malformed,
            more than the limits allow, a name twice, an unknown type, or a tensor whose bytes lie
            outside the file, not aligned, or in another one's.
    """
    size_bytes = file_size_bytes(path)
    # A large head makes a million strings and not one cycle; looking for cycles again and again
    # would double the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        with path.open("rb") as file:
            return _read(path, Cursor(path, file, size_bytes), size_bytes)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    finally:
        if collecting:
            gc.enable()


def _read(path: Path, cursor: Cursor, size_bytes: int) -> GGUFHeader:
    version = _version(path, cursor)
    num_tensors = _count(cursor, "tensors", _MAX_TENSORS, _TENSOR_BYTES, size_bytes)
    num_keys = _count(cursor, "keys", _MAX_KEYS, _KEY_BYTES, size_bytes)
    metadata: dict[str, Value] = {}
    for index in range(num_keys):
        key = cursor.string(f"the name of key {index}", _MAX_KEY_BYTES)
        if not key or not key.isprintable():
            raise cursor.error(f"key {index} has the name {key!r:.80}")
        if key in metadata:
            raise cursor.error(f"the key {key:.80} occurs twice")
        metadata[key] = cursor.value(key[:80])
    alignment = _alignment(cursor, metadata)
    listed = [_tensor(cursor, index, alignment) for index in range(num_tensors)]
    data_offset = -(-cursor.position // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    for tensor in listed:
        if tensor.name in tensors:
            raise cursor.error(f"the tensor {tensor.name} occurs twice")
        tensors[tensor.name] = tensor._replace(offset=data_offset + tensor.offset)
    _check_ranges(cursor, list(tensors.values()), size_bytes)
    return GGUFHeader(path, version, metadata, tensors, data_offset, size_bytes)


def _version(path: Path, cursor: Cursor) -> int:
    magic = cursor.take(4, "the mark of the format")
    if magic in _BEFORE_GGUF:
        raise ModelFileError(
            f"{path}: a GGML file from before GGUF; convert the original model again"
        )
    if magic != MAGIC:
        raise ModelFileError(f"{path}: begins with {magic!r}, a GGUF file begins with {MAGIC!r}")
    version = cursor.number("I", "the version")
    if version & 0xFFFF == 0 and version:
        raise ModelFileError(
            f"{path}: a big-endian GGUF file; only little-endian ones can be read, convert the "
            f"original model on or for a little-endian machine"
        )
    if version not in _VERSIONS:
        raise ModelFileError(
            f"{path}: version {version} of GGUF; versions 2 and 3 can be read, "
            f"{'convert the original model again' if version < 2 else 'a newer Martlet may help'}"
        )
    return version


def _count(cursor: Cursor, what: str, limit: int, each_bytes: int, size_bytes: int) -> int:
    count = cursor.number("Q", f"the number of {what}")
    possible = min(limit, size_bytes // each_bytes)
    if count > possible:
        raise cursor.error(f"claims {count:,} {what}, at most {possible:,} are possible")
    return count


def _alignment(cursor: Cursor, metadata: dict[str, Value]) -> int:
    value = metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT)
    is_power = type(value) is int and 0 < value <= _MAX_ALIGNMENT and value & (value - 1) == 0
    if not is_power:
        raise cursor.error(
            f"{_ALIGNMENT_KEY} is {value!r:.40}, it must be a power of two up to {_MAX_ALIGNMENT:,}"
        )
    assert isinstance(value, int)
    return value


def _tensor(cursor: Cursor, index: int, alignment: int) -> GGUFTensor:
    """The next entry of the list; its offset counts from the start of the data."""
    name = cursor.string(f"the name of tensor {index}", _MAX_NAME_BYTES)
    if problem := check_tensor_name(name):
        raise cursor.error(problem)
    axes = cursor.number("I", f"the axes of {name}")
    if not 1 <= axes <= _MAX_AXES:
        raise cursor.error(f"{name} has {axes:,} axes, 1 to {_MAX_AXES} are possible")
    sizes = [cursor.number("Q", f"the shape of {name}") for _ in range(axes)]
    # With a zero among them the others may still multiply to more than 64 bits.
    if math.prod(filter(None, sizes)) > _MAX_ELEMENTS:
        raise cursor.error(f"{name} has shape {sizes[::-1]}, more than {_MAX_ELEMENTS:,} elements")
    number = cursor.number("I", f"the type of {name}")
    kind = BLOCK_TYPES.get(number)
    if kind is None:
        raise cursor.error(f"{name} has numbers of type {number}, which is not known")
    if sizes[0] % kind.elements:
        raise cursor.error(
            f"{name} has rows of {sizes[0]:,}, {kind.name} needs a multiple of {kind.elements}"
        )
    offset = cursor.number("Q", f"the offset of {name}")
    if offset % alignment:
        raise cursor.error(f"{name} starts at byte {offset:,}, no multiple of {alignment}")
    nbytes = math.prod(sizes) // kind.elements * kind.nbytes
    return GGUFTensor(name, kind, tuple(reversed(sizes)), offset, nbytes)


def _check_ranges(cursor: Cursor, tensors: list[GGUFTensor], size_bytes: int) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda tensor: (tensor.offset, tensor.nbytes)):
        if tensor.offset < end:
            raise cursor.error(
                f"{tensor.name} starts at byte {tensor.offset:,}, inside the tensor before it, "
                f"which ends at {end:,}"
            )
        end = tensor.offset + tensor.nbytes
        if end > size_bytes:
            raise cursor.error(
                f"{tensor.name} ends at byte {end:,}, the file has {size_bytes:,}: it is truncated"
            )
