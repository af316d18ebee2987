"""Parts from a model folder, turned into tiles on their way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from martlet.checkpoint.store import Store
from martlet.memory.executor import BlockTransform
from martlet.memory.layout import PartLayout, view_entry
from martlet.quantization.packing import TILE_ROWS, padded_shape
from martlet.quantization.scheme import (
    GroupedTensor,
    QuantizedTensor,
    StoredWeight,
    TiledTensor,
    tiled,
)

__all__ = ["FolderSource"]

# Of a matrix that is on the GPU at a time to be tiled. Integers of 4 bits are spread to bytes there
# and moved about as such, so their pieces are smaller.
_PIECE_BYTES = 16 << 20


class FolderSource:
    """Fills parts from a folder; ``transform`` sees each block first, for quantising at load.

    Matrices are tiled on ``device`` a few rows at a time, also where the part stays in main memory:
    that is many times faster than on a processor.
    """

    def __init__(
        self, store: Store, device: torch.device, transform: BlockTransform | None = None
    ) -> None:
        self._store = store
        self._device = device
        self._transform = transform
        self._block: tuple[str, Mapping[str, StoredWeight]] = ("", {})

    def fill(self, layout: PartLayout, out: Tensor) -> None:
        """Write a whole part.

        Shapes:
            out: (layout.nbytes,) uint8, in main memory or on the GPU
        """
        weights = self._weights(layout.block)
        for entry in layout.entries:
            target, weight = view_entry(entry, out), weights[entry.name]
            if isinstance(target, TiledTensor):
                assert isinstance(weight, QuantizedTensor | GroupedTensor)
                self._fill_tiles(weight, target)
            else:
                assert isinstance(weight, Tensor)
                assert isinstance(target, Tensor)
                target.copy_(weight)

    def _fill_tiles(self, weight: QuantizedTensor | GroupedTensor, target: TiledTensor) -> None:
        assert weight.format == target.format, (weight.format, target.format)
        num_rows, num_columns = weight.shape
        rows, columns = padded_shape(num_rows, num_columns, target.format.bits)
        piece_rows = _PIECE_BYTES * target.format.bits // (8 * columns)
        step = max(TILE_ROWS, piece_rows // TILE_ROWS * TILE_ROWS)
        for start in range(0, num_rows, step):
            piece = tiled(weight.rows(start, start + step).to(self._device))
            here = slice(start, start + piece.scale.numel())
            target.scale[here].copy_(piece.scale)
            # A row of tiles and its share of the table are whole runs of bytes.
            target.data.view(rows, -1)[here].copy_(piece.data.view(piece.scale.numel(), -1))
            if target.groups is not None and piece.groups is not None:
                groups = piece.groups.view(piece.scale.numel(), -1)
                target.groups.view(rows, -1)[here].copy_(groups)

    def _weights(self, block: str) -> Mapping[str, StoredWeight]:
        if self._block[0] != block:
            weights: Mapping[str, StoredWeight] = self._store.block(block)
            if self._transform is not None:
                weights = self._transform(block, weights)
            self._block = (block, weights)
        return self._block[1]
