"""A linear layer by its name in the block."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from martlet.kernels import ops
from martlet.quantization.scheme import Weight

__all__ = ["linear", "vector"]


def linear(weights: Mapping[str, Weight], name: str, x: Tensor) -> Tensor:
    """``x`` through ``name.weight`` and, where the block has one, ``name.bias``.

    Shapes:
        x: (..., in_features)
        return: (..., out_features)
    """
    bias = vector(weights, f"{name}.bias") if f"{name}.bias" in weights else None
    return ops.linear(x, weights[f"{name}.weight"], bias)


def vector(weights: Mapping[str, Weight], name: str) -> Tensor:
    """A tensor of a kind that is never quantised: norm, bias, position table."""
    tensor = weights[name]
    assert isinstance(tensor, Tensor), f"{name} must not be quantised"
    return tensor
