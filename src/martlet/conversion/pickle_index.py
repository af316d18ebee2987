"""Where the tensors of a torch file lie, found out by a child process that can do no harm."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from martlet.checkpoint.mapped import MappedFile, file_size_bytes
from martlet.checkpoint.safetensors import MAX_ENTRIES, check_tensor_name
from martlet.conversion.table import StoredTensor
from martlet.errors import ModelFileError

__all__ = ["PickleIndex", "read_index"]

_CHILD = Path(__file__).with_name("pickle_child.py")
_TIMEOUT_SECONDS = 180
_MAX_ANSWER_BYTES = 256 << 20
_MAX_DIMENSIONS = 8
_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class PickleIndex:
    """Tensors of a torch file by the keys that lead to them, and plain values at the top."""

    tensors: Mapping[tuple[str, ...], StoredTensor]
    values: Mapping[str, Any]


def read_index(path: Path) -> PickleIndex:
    """The tensors of a torch file; the pickle in it is never loaded in this process.

    Raises:
        ModelFileError: not a torch file, one that names anything but tensors and plain data, or
            one whose tensors do not lie inside the file.
    """
    size_bytes = file_size_bytes(path)
    answer = _ask_child(path)
    tensors, values = answer.get("tensors"), answer.get("values")
    if not isinstance(tensors, list) or not isinstance(values, dict):
        raise ModelFileError(f"{path}: its tensors could not be listed")
    if len(tensors) > MAX_ENTRIES:
        raise ModelFileError(f"{path}: {len(tensors):,} tensors, the limit is {MAX_ENTRIES:,}")
    file = MappedFile(path)
    if file.size_bytes != size_bytes:
        raise ModelFileError(f"{path}: changed while it was opened")
    checked = dict(_check(path, file, entry) for entry in tensors)
    return PickleIndex(checked, values)


def _ask_child(path: Path) -> dict[str, Any]:
    # -I: no environment variable, no user site and no current folder decides what it imports.
    command = [sys.executable, "-I", str(_CHILD), str(path.absolute())]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            env={},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ModelFileError(
            f"{path}: listing its tensors took more than {_TIMEOUT_SECONDS} seconds"
        ) from None
    try:
        answer = json.loads(done.stdout[:_MAX_ANSWER_BYTES])
    except (ValueError, RecursionError):
        answer = None
    if not isinstance(answer, dict):
        raise ModelFileError(
            f"{path}: listing its tensors failed (status {done.returncode}); "
            f"the file is damaged or hostile"
        )
    if "error" in answer:
        raise ModelFileError(f"{path}: {answer['error']}; it is damaged, hostile or not supported")
    return answer


def _check(path: Path, file: MappedFile, entry: Any) -> tuple[tuple[str, ...], StoredTensor]:
    """One tensor of the answer, which is as little trusted as the file."""
    if not isinstance(entry, dict):
        raise ModelFileError(f"{path}: its list of tensors is malformed")
    keys = entry.get("keys")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise ModelFileError(f"{path}: a tensor without a name")
    name = ".".join(keys)
    if problem := check_tensor_name(name):
        raise ModelFileError(f"{path}: {problem}")
    dtype = _DTYPES.get(str(entry.get("dtype")))
    shape: Any = entry.get("shape")
    stride: Any = entry.get("stride")
    offset: Any = entry.get("offset")
    end: Any = entry.get("end")
    if dtype is None or not all(map(_is_sizes, (shape, stride, [offset, end]))):
        raise ModelFileError(f"{path}: {name}: its type, shape or place is malformed")
    if len(stride) != len(shape) or len(shape) > _MAX_DIMENSIONS:
        raise ModelFileError(f"{path}: {name}: its stride does not fit its shape")
    reach = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    nbytes = 0 if 0 in shape else reach * dtype.itemsize
    if offset + nbytes > end or end > file.size_bytes:
        raise ModelFileError(
            f"{path}: {name} reaches to byte {offset + nbytes:,}, its storage ends at {end:,} and "
            f"the file at {file.size_bytes:,}; it is truncated or hostile"
        )
    return tuple(keys), StoredTensor(file, offset, dtype, tuple(shape), tuple(stride))


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(size) is int and 0 <= size <= 1 << 60 for size in value
    )
