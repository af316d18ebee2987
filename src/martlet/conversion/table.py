"""Tensors of a foreign checkpoint by their names there: where they lie, and views of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from martlet.checkpoint.mapped import MappedFile
from martlet.checkpoint.safetensors import map_tensors
from martlet.errors import ModelFileError

__all__ = ["StoredTensor", "TensorTable", "safetensors_table"]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it lies in a mapped file.

    ``stride`` counts elements; None means that the rows lie one after the other.

    Units:
        offset: bytes from the start of the file.
    """

    file: MappedFile
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...] | None = None

    def load(self) -> Tensor:
        """A view of the file; nothing is copied."""
        self.file.prefetch(self.offset, self.nbytes)
        if self.stride is None or 0 in self.shape:
            return self.file.tensor(self.offset, self.dtype, self.shape)
        flat = self.file.tensor(self.offset, self.dtype, (self.nbytes // self.dtype.itemsize,))
        return flat.as_strided(self.shape, self.stride)

    @property
    def nbytes(self) -> int:
        """Bytes from its first to its last element in the file."""
        if 0 in self.shape:
            return 0
        if self.stride is None:
            return math.prod(self.shape) * self.dtype.itemsize
        reach = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return (reach + 1) * self.dtype.itemsize


class TensorTable:
    """All tensors of a checkpoint, whatever number of files they are spread over."""

    def __init__(self, path: Path, tensors: Mapping[str, StoredTensor]) -> None:
        self.path = path
        self._tensors = tensors
        self._files = {id(tensor.file): tensor.file for tensor in tensors.values()}

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def names(self) -> Iterable[str]:
        """The names, in file order."""
        return self._tensors.keys()

    def find(self, *names: str) -> StoredTensor:
        """The first of these names that there is.

        Raises:
            ModelFileError: there is none of them.
        """
        for name in names:
            if name in self._tensors:
                return self._tensors[name]
        raise ModelFileError(
            f"{self.path}: has no tensor {' or '.join(dict.fromkeys(names))}; fetch the model again"
        )

    def shape(self, name: str, num_dimensions: int) -> tuple[int, ...]:
        """The shape of a tensor that must have so many axes, none of them empty.

        Raises:
            ModelFileError: no such tensor, or another number of axes.
        """
        shape = self.find(name).shape
        if len(shape) != num_dimensions or 0 in shape:
            raise ModelFileError(
                f"{self.path}: {name} has shape {list(shape)}, expected {num_dimensions} axes"
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many layers there are: the first index from 0 that ``pattern`` does not fit."""
        index = 0
        while pattern.format(index) in self._tensors:
            index += 1
        return index

    def forget(self) -> None:
        """Give back the memory of the pages read so far; views stay valid."""
        for file in self._files.values():
            file.forget()


def safetensors_table(path: Path, files: Iterable[Path]) -> TensorTable:
    """The tensors of safetensors files that belong together.

    Raises:
        ModelFileError: a file is not sound, or two files hold a tensor of the same name.
    """
    tensors: dict[str, StoredTensor] = {}
    for file in files:
        mapped = map_tensors(file)
        for entry in mapped.header.tensors.values():
            if entry.name in tensors:
                raise ModelFileError(f"{path}: two shards hold {entry.name}")
            tensors[entry.name] = StoredTensor(mapped.file, entry.offset, entry.dtype, entry.shape)
    return TensorTable(path, tensors)
