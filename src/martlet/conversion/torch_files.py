"""Tensors inside torch's own files, which are pickles: indexed in a child process, mapped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from martlet.conversion.pickle_index import read_index
from martlet.conversion.table import StoredTensor, TensorTable
from martlet.errors import ModelFileError

__all__ = ["SECTIONS", "section_table", "torch_table"]

SECTIONS = ("module", "model")
"""Keys under which DeepSpeed and Megatron keep the weights beside optimizer and random state."""


def torch_table(path: Path, files: Iterable[Path]) -> TensorTable:
    """The tensors of flat torch files (name -> tensor) that belong together.

    Raises:
        ModelFileError: a file is not sound, or two files hold a tensor of the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        for keys, tensor in read_index(file).tensors.items():
            if len(keys) != 1:
                continue  # a tensor inside a dict or list is not a weight of a flat file
            if keys[0] in tensors:
                raise ModelFileError(f"{path}: two shards hold {keys[0]}")
            tensors[keys[0]] = tensor
    return TensorTable(path, tensors)


def section_table(file: Path) -> tuple[TensorTable, Mapping[str, Any]]:
    """The weights of one file, under "module" or "model" or at the top, and its plain values.

    Raises:
        ModelFileError: the file is not sound or holds no tensor.
    """
    index = read_index(file)
    for section in (*SECTIONS, None):
        prefix = () if section is None else (section,)
        tensors = {
            keys[-1]: tensor
            for keys, tensor in index.tensors.items()
            if len(keys) == len(prefix) + 1 and keys[: len(prefix)] == prefix
        }
        if tensors:
            return TensorTable(file, tensors), index.values
    raise ModelFileError(f"{file}: holds no tensors")
