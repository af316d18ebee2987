"""Parts from a model folder, turned into tiles on their way."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from martlet.checkpoint.store import Store
from martlet.memory.executor import BlockTransform
from martlet.memory.layout import PartEntry, PartLayout, view_entry
from martlet.quantization.packing import TILE_ROWS, pack_tiles, padded_shape
from martlet.quantization.scheme import QuantizedTensor, StoredWeight, TiledTensor

__all__ = ["FolderSource"]

_PIECE_BYTES = 16 << 20  # of a matrix that is on the GPU at a time to be tiled


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
                assert isinstance(weight, QuantizedTensor)
                self._fill_tiles(entry, weight, target)
            else:
                assert isinstance(weight, Tensor)
                assert isinstance(target, Tensor)
                target.copy_(weight)

    def _fill_tiles(self, entry: PartEntry, weight: QuantizedTensor, target: TiledTensor) -> None:
        num_rows = entry.shape[0]
        _, columns = padded_shape(*entry.shape)
        step = max(TILE_ROWS, _PIECE_BYTES // columns // TILE_ROWS * TILE_ROWS)
        for start in range(0, num_rows, step):
            rows = weight.data[start : start + step].to(self._device)
            tiles = pack_tiles(rows)
            target.data[start * columns : start * columns + tiles.numel()].copy_(tiles)
        target.scale.fill_(1.0)  # of rows that only pad
        target.scale[:num_rows].copy_(weight.scale)

    def _weights(self, block: str) -> Mapping[str, StoredWeight]:
        if self._block[0] != block:
            weights: Mapping[str, StoredWeight] = self._store.block(block)
            if self._transform is not None:
                weights = self._transform(block, weights)
            self._block = (block, weights)
        return self._block[1]
