"""Normalisation layers by their name in the block."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from martlet.kernels import ops
from martlet.layers.linear import vector
from martlet.quantization.scheme import Weight

__all__ = ["layer_norm", "rms_norm"]


def layer_norm(weights: Mapping[str, Weight], name: str, x: Tensor, eps: float) -> Tensor:
    """Layer norm with ``name.weight`` and ``name.bias``."""
    return ops.layer_norm(
        x, vector(weights, f"{name}.weight"), vector(weights, f"{name}.bias"), eps
    )


def rms_norm(weights: Mapping[str, Weight], name: str, x: Tensor, eps: float) -> Tensor:
    """Root mean square norm with ``name.weight``."""
    return ops.rms_norm(x, vector(weights, f"{name}.weight"), eps)
