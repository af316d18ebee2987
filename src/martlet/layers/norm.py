"""Normalisation layers by their name in the block, as values for ``ops.norm`` and for linears."""

from __future__ import annotations

from collections.abc import Mapping

from martlet.kernels import ops
from martlet.layers.linear import vector
from martlet.quantization.scheme import Weight

__all__ = ["layer_norm", "rms_norm"]


def layer_norm(weights: Mapping[str, Weight], name: str, eps: float) -> ops.Norm:
    """The layer norm with ``name.weight`` and ``name.bias``."""
    return ops.Norm(vector(weights, f"{name}.weight"), vector(weights, f"{name}.bias"), eps)


def rms_norm(weights: Mapping[str, Weight], name: str, eps: float) -> ops.Norm:
    """The root mean square norm with ``name.weight``."""
    return ops.Norm(vector(weights, f"{name}.weight"), None, eps)
