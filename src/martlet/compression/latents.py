"""The float matrix behind a rounded one, where the rounded one is of a scaled model."""

from __future__ import annotations

import torch
from torch import Tensor

from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

__all__ = ["aligned"]

# What rounding alone changes of a matrix is less than this share of its squares.
_ROUNDING_SHARE = 0.05
_ROUNDS = 4


def aligned(
    latent: Tensor, weight: QuantizedTensor | GroupedTensor, device: torch.device
) -> Tensor:
    """The float matrix that the integers stand for, on the host in its own type.

    That is ``latent``, unless rows and inputs were multiplied by factors of their own before the
    weight was rounded: then the factors are estimated, by least squares.

    Shapes:
        latent: (out_features, in_features)
    """
    assert latent.shape == weight.shape
    wide, rounded = latent.to(device, torch.float32), weight.to(device).dequantize()
    if (rounded - wide).square().sum() <= _ROUNDING_SHARE * wide.square().sum():
        return latent
    for _ in range(_ROUNDS):
        for axis in (0, 1):
            power = wide.square().sum(axis, keepdim=True)
            factor = (wide * rounded).sum(axis, keepdim=True) / power.clamp(min=1e-30)
            wide = wide * torch.where(power > 0, factor, 1.0)
    return wide.to(latent.dtype).to("cpu")
