"""Parts from a model's files: pieces of a tensor become integers and tiles on their way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from martlet.compression.requantize import in_format
from martlet.engine.loaded_weights import LoadProgress, ReadCounter
from martlet.engine.model_files import ModelFiles
from martlet.engine.uploads import Uploads
from martlet.memory.layout import PartLayout, view_entry
from martlet.models.architecture import BlockSpec
from martlet.quantization.formats import WeightFormat
from martlet.quantization.packing import TILE_ROWS, padded_shape
from martlet.quantization.scheme import (
    GroupedTensor,
    QuantizedTensor,
    StoredWeight,
    TiledTensor,
    tiled,
)

__all__ = ["FolderSource"]

# Weights of a matrix that are on the GPU at a time, there to be quantised and tiled. Integers of 4
# bits are spread to bytes and moved about as such.
_PIECE_ELEMENTS = 4 << 20


class FolderSource:
    """Fills parts from a model's files; matrices take the format that their part has for them.

    They are quantised and tiled on ``device`` a few rows at a time, also where the part stays in
    main memory: that is many times faster than on a processor, and neither side ever holds a tensor
    twice. Pages of the files are given back after each tensor.
    """

    def __init__(
        self,
        files: ModelFiles,
        specs: tuple[BlockSpec, ...],
        device: torch.device,
        progress: LoadProgress | None = None,
    ) -> None:
        self._files = files
        self._prefixes = {spec.name: spec.prefix for spec in specs}
        self._device = device
        self._uploads = Uploads(device)
        self._counter = ReadCounter(files, progress)

    def fill(self, layout: PartLayout, out: Tensor) -> None:
        """Write a whole part.

        Shapes:
            out: (layout.nbytes,) uint8, in main memory or on the GPU

        Raises:
            ModelFileError: a weight is infinite or not a number.
        """
        for entry in layout.entries:
            name = self._prefixes[layout.block] + entry.name
            stored = self._files.weight(layout.block, entry.name)
            target = view_entry(entry, out)
            if isinstance(target, TiledTensor):
                self._fill_tiles(stored, target, name)
            else:
                assert isinstance(target, Tensor)
                for rows, piece in self._pieces(stored, None, name):
                    assert isinstance(piece, Tensor)
                    target[rows].copy_(piece)
            del stored
            self._files.forget()
            self._counter.count(name)

    def _fill_tiles(self, stored: StoredWeight, target: TiledTensor, name: str) -> None:
        num_rows, num_columns = target.shape
        rows, _ = padded_shape(num_rows, num_columns, target.format.bits)
        for here, weight in self._pieces(stored, target.format, name):
            assert isinstance(weight, QuantizedTensor | GroupedTensor)
            piece = tiled(weight)
            here = slice(here.start, here.start + piece.scale.numel())
            target.scale[here].copy_(piece.scale)
            # A row of tiles and its share of the table are whole runs of bytes.
            target.data.view(rows, -1)[here].copy_(piece.data.view(piece.scale.numel(), -1))
            if target.groups is not None and piece.groups is not None:
                groups = piece.groups.view(piece.scale.numel(), -1)
                target.groups.view(rows, -1)[here].copy_(groups)

    def _pieces(
        self, stored: StoredWeight, format: WeightFormat | None, name: str
    ) -> Iterator[tuple[slice, StoredWeight]]:
        """Whole rows of tiles, one piece at a time, on the device and in the format."""
        num_rows = stored.shape[0]
        columns = max(1, stored.shape.numel() // max(1, num_rows))
        step = max(TILE_ROWS, _PIECE_ELEMENTS // columns // TILE_ROWS * TILE_ROWS)
        starts = range(0, num_rows, step)
        pieces = (_rows(stored, start, min(start + step, num_rows)) for start in starts)
        for start, piece in zip(starts, self._uploads.pieces(pieces), strict=True):
            where = name if start == 0 else f"{name}, rows from {start:,} on"
            here = slice(start, min(start + step, num_rows))
            yield here, in_format(piece, format, where, self._device)


def _rows(weight: StoredWeight, start: int, stop: int) -> StoredWeight:
    return weight[start:stop] if isinstance(weight, Tensor) else weight.rows(start, stop)
