"""Where each tensor lies inside a part: the run of bytes that moves and is computed with as one.

A part is a block of weights, or the piece of a decoder block that only the first pass after the
encoder reads ("decoder.3.once"). Its bytes are the same in the GPU's memory and in main memory:
int8 matrices in tiles with float32 scales behind them, everything else in the activation's type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from martlet.memory.parts import aligned
from martlet.quantization.packing import padded_shape
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
    """A tensor that a part will hold: an int8 matrix, or floats."""

    name: str
    shape: tuple[int, ...]
    is_int8: bool


@dataclass(frozen=True)
class PartEntry:
    """One tensor of a part; int8 in tiles where ``scale_offset`` is given, else of ``dtype``.

    Units:
        offset, scale_offset: bytes from the start of the part.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    offset: int
    nbytes: int
    scale_offset: int | None = None

    @property
    def is_tiled(self) -> bool:
        """Whether the tensor is an int8 matrix in tiles."""
        return self.scale_offset is not None


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
    """The layout of a part; what is not int8 takes ``dtype``."""
    entries = []
    end = 0
    for tensor in tensors:
        if tensor.is_int8:
            rows, columns = padded_shape(*tensor.shape)
            nbytes, scale_nbytes = rows * columns, 4 * rows
            scale_offset = aligned(end + nbytes)
            entry = PartEntry(tensor.name, tensor.shape, torch.uint8, end, nbytes, scale_offset)
            end = aligned(scale_offset + scale_nbytes)
        else:
            nbytes = math.prod(tensor.shape) * dtype.itemsize
            entry = PartEntry(tensor.name, tensor.shape, dtype, end, nbytes)
            end = aligned(end + nbytes)
        entries.append(entry)
    return PartLayout(name, block, tuple(entries), end)


def view_part(layout: PartLayout, memory: Tensor) -> Mapping[str, Weight]:
    """The weights of a part that lies in ``memory``, as views.

    Shapes:
        memory: (at least layout.nbytes,) uint8
    """
    return {entry.name: view_entry(entry, memory) for entry in layout.entries}


def view_entry(entry: PartEntry, memory: Tensor) -> Weight:
    """One weight of a part that lies in ``memory``, as a view."""
    data = memory[entry.offset : entry.offset + entry.nbytes]
    if entry.scale_offset is None:
        return data.view(entry.dtype).view(entry.shape)
    rows, _ = padded_shape(*entry.shape)
    scale = memory[entry.scale_offset : entry.scale_offset + 4 * rows].view(torch.float32)
    return TiledTensor(data, scale, torch.Size(entry.shape))
