"""Linear for a weight that is stored in another format than the activation, on any device.

The weight is brought to the activation's dtype a few rows at a time, so a float copy of the whole
matrix never exists: at 26,240 x 4,096 that copy would be 430 MB.
"""

from __future__ import annotations

import torch
from torch import Tensor

from martlet.quantization.scheme import (
    GroupedTensor,
    ObservedWeight,
    QuantizedTensor,
    TiledTensor,
    Weight,
)

__all__ = ["linear", "rows_of_a_tile"]

# On a processor a tile should stay in the level 2 cache between being written and being multiplied:
# 1 to 4 MiB measured alike, 0.25 MiB a third slower. On a card a tile has to be large, since every
# one costs two launches.
_TILE_BYTES = {"cpu": 2 << 20}
_TILE_BYTES_ELSEWHERE = 64 << 20


def linear(x: Tensor, weight: Weight) -> Tensor:
    """``x @ weight.T``, the weight rounded to the dtype of ``x`` row tile by row tile.

    Shapes:
        x: (rows, in_features)
        weight: (out_features, in_features)
        return: (rows, out_features)
    """
    out_features = weight.shape[0]
    step = rows_of_a_tile(x)
    out = x.new_empty(x.shape[0], out_features)
    stored, scale = weight, None
    if isinstance(weight, QuantizedTensor) and x.dtype == torch.float32:
        # The integers are exact in float32 and their sums cannot overflow, so the few results are
        # scaled instead of the many weights. Half types lack the range for that.
        stored, scale = weight.data, weight.scale
    for start in range(0, out_features, step):
        stop = min(start + step, out_features)
        torch.mm(x, _rows(stored, start, stop, x.dtype).t(), out=out[:, start:stop])
    return out if scale is None else out.mul_(scale)


def rows_of_a_tile(x: Tensor) -> int:
    """Rows of a weight that are brought to the dtype of ``x`` at a time."""
    tile_bytes = _TILE_BYTES.get(x.device.type, _TILE_BYTES_ELSEWHERE)
    return max(1, tile_bytes // (x.shape[1] * x.element_size()))


def _rows(weight: Weight, start: int, stop: int, dtype: torch.dtype) -> Tensor:
    assert not isinstance(weight, TiledTensor), "tiles are for the GPU's own kernels"
    assert not isinstance(weight, ObservedWeight), "the product has looked and taken it off"
    if isinstance(weight, QuantizedTensor | GroupedTensor):
        return weight.rows(start, stop).dequantize(dtype)
    return weight[start:stop].to(dtype)
