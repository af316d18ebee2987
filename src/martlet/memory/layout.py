"""Where each tensor lies inside a part: the run of bytes that moves and is computed with as one.

A part is a block of weights, or the piece of a decoder block that only the first pass after the
encoder reads ("decoder.3.once"). Its bytes are the same in the GPU's memory and in main memory:
matrices of integers in tiles, with the float32 scales of their rows and the float16 scales of their
groups behind them, everything else in the activation's type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from martlet.memory.parts import aligned
from martlet.quantization.formats import WeightFormat
from martlet.quantization.packing import group_table_numel, padded_shape
from martlet.quantization.scheme import TiledTensor, Weight

__all__ = [
    "PartEntry",
    "PartLayout",
    "PartSource",
    "TensorForm",
    "lay_out_part",
    "view_entry",
    "view_part",
]


@dataclass(frozen=True)
class TensorForm:
    """A tensor that a part will hold: a matrix of integers in a format, or floats for None."""

    name: str
    shape: tuple[int, ...]
    format: WeightFormat | None


@dataclass(frozen=True)
class PartEntry:
    """One tensor of a part; integers in tiles where ``format`` is given, else of ``dtype``.

    ``nbytes`` are those of the tiles, or of the floats; scales lie behind them.

    Units:
        offset, scale_offset, groups_offset: bytes from the start of the part.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    nbytes: int
    format: WeightFormat | None = None
    scale_offset: int = 0
    groups_offset: int = 0

    @property
    def is_tiled(self) -> bool:
        """Whether the tensor is a matrix of integers in tiles."""
        return self.format is not None

    @property
    def scale_nbytes(self) -> int:
        """Bytes of the scales of rows, those that only pad included."""
        return 0 if self.format is None else 4 * padded_shape(*self._sides)[0]

    @property
    def groups_nbytes(self) -> int:
        """Bytes of the scales, and zeros, of groups."""
        if self.format is None or self.format.group_size is None:
            return 0
        return 2 * group_table_numel(*self._sides, self.format)

    @property
    def _sides(self) -> tuple[int, int]:
        out_features, in_features = self.shape
        return out_features, in_features


@dataclass(frozen=True)
class PartLayout:
    """A part: the block it belongs to, its tensors in order, and its size, a whole alignment."""

    name: str
    block: str
    entries: tuple[PartEntry, ...]
    nbytes: int


class PartSource(Protocol):
    """Where the bytes of parts come from: a model folder, or weights made in memory."""

    def fill(self, layout: PartLayout, out: Tensor) -> None:
        """Write a whole part.

        Shapes:
            out: (layout.nbytes,) uint8, in main memory or on the GPU
        """
        ...


def lay_out_part(
    name: str, block: str, tensors: Iterable[TensorForm], dtype: torch.dtype
) -> PartLayout:
    """The layout of a part; what has no format takes ``dtype``."""
    entries = []
    end = 0
    for tensor in tensors:
        entry = _place(tensor, dtype, end)
        end = aligned(entry.offset + entry.nbytes)
        if entry.is_tiled:
            entry = replace(
                entry, scale_offset=end, groups_offset=aligned(end + entry.scale_nbytes)
            )
            end = aligned(entry.groups_offset + entry.groups_nbytes)
        entries.append(entry)
    return PartLayout(name, block, tuple(entries), end)


def _place(tensor: TensorForm, dtype: torch.dtype, offset: int) -> PartEntry:
    """The tiles or floats of a tensor, without what lies behind them."""
    if tensor.format is None:
        nbytes = math.prod(tensor.shape) * dtype.itemsize
        return PartEntry(tensor.name, tensor.shape, dtype, offset, nbytes)
    out_features, in_features = tensor.shape
    rows, columns = padded_shape(out_features, in_features, tensor.format.bits)
    nbytes = rows * columns * tensor.format.bits // 8
    return PartEntry(tensor.name, tensor.shape, torch.uint8, offset, nbytes, tensor.format)


def view_part(layout: PartLayout, memory: Tensor) -> Mapping[str, Weight]:
    """The weights of a part that lies in ``memory``, as views.

    Shapes:
        memory: (at least layout.nbytes,) uint8
    """
    return {entry.name: view_entry(entry, memory) for entry in layout.entries}


def view_entry(entry: PartEntry, memory: Tensor) -> Weight:
    """One weight of a part that lies in ``memory``, as a view."""
    data = memory[entry.offset : entry.offset + entry.nbytes]
    if entry.format is None:
        return data.view(entry.dtype).view(entry.shape)
    scale = memory[entry.scale_offset : entry.scale_offset + entry.scale_nbytes]
    groups = None
    if entry.groups_nbytes:
        groups = memory[entry.groups_offset : entry.groups_offset + entry.groups_nbytes]
        groups = groups.view(torch.float16)
    shape = torch.Size(entry.shape)
    return TiledTensor(data, scale.view(torch.float32), shape, entry.format, groups)
