"""The weight types that layers compute with: a float tensor, or int8 with one scale a row.

int8 comes as a plain matrix, which files hold and processors compute with, or in tiles, which GPUs
compute with.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.quantization.packing import pack_tiles, padded_shape, unpack_tiles

__all__ = ["QuantizedTensor", "StoredWeight", "TiledTensor", "Weight", "tiled", "weight_nbytes"]


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """An int8 matrix whose row r stands for ``data[r] * scale[r]``.

    Shapes:
        data: (out_features, in_features) int8, -127..127
        scale: (out_features,) float32 or float16

    Units:
        scale: weight per integer step.
    """

    data: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """(out_features, in_features)."""
        return self.data.shape

    @property
    def device(self) -> torch.device:
        """Where both tensors live."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of the integers and the scales together."""
        return self.data.nbytes + self.scale.nbytes

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same weight on another device."""
        return QuantizedTensor(self.data.to(device), self.scale.to(device))

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight in float, (out_features, in_features); the product is rounded once."""
        return (self.data.to(torch.float32) * self.scale.to(torch.float32)[:, None]).to(dtype)


@dataclass(frozen=True, eq=False)
class TiledTensor:
    """An int8 matrix in tiles (see ``packing``), with one float32 scale a row.

    Shapes:
        data: (padded rows * padded columns,) uint8
        scale: (padded rows,) float32; what stands behind the last row is finite
        shape: (out_features, in_features) without the padding
    Units:
        scale: weight per integer step.
    """

    data: Tensor
    scale: Tensor
    shape: torch.Size

    def __post_init__(self) -> None:
        rows, columns = padded_shape(*self.shape)
        assert self.data.shape == (rows * columns,), (self.data.shape, self.shape)
        assert self.scale.shape == (rows,), (self.scale.shape, self.shape)

    @property
    def device(self) -> torch.device:
        """Where both tensors live."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles and the scales together."""
        return self.data.nbytes + self.scale.nbytes

    def untiled(self) -> QuantizedTensor:
        """The same weight as a plain matrix."""
        rows = self.shape[0]
        return QuantizedTensor(unpack_tiles(self.data, *self.shape), self.scale[:rows])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight in float, (out_features, in_features); the product is rounded once."""
        return self.untiled().dequantize(dtype)


def tiled(weight: QuantizedTensor) -> TiledTensor:
    """The weight in tiles, on the same device."""
    rows, _ = padded_shape(*weight.shape)
    scale = torch.ones(rows, dtype=torch.float32, device=weight.device)
    scale[: weight.shape[0]] = weight.scale
    return TiledTensor(pack_tiles(weight.data), scale, weight.shape)


StoredWeight = Tensor | QuantizedTensor
Weight = Tensor | QuantizedTensor | TiledTensor


def weight_nbytes(weight: Weight) -> int:
    """Bytes that a weight occupies, scales included."""
    return weight.nbytes
