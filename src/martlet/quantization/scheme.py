"""The weight types that layers compute with: a float tensor, or int8 with one scale a row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["QuantizedTensor", "Weight", "weight_nbytes"]


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


Weight = Tensor | QuantizedTensor


def weight_nbytes(weight: Weight) -> int:
    """Bytes that a weight occupies, scales included."""
    return weight.nbytes
