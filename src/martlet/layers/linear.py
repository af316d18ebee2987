"""Linear layers by their names in the block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from martlet.kernels import ops
from martlet.quantization.scheme import Weight

__all__ = ["gated_linear", "linear", "linears", "vector"]


def linear(
    weights: Mapping[str, Weight],
    name: str,
    x: Tensor,
    *,
    norm: ops.Norm | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(norm(x) through the layer) + residual``; what is None is left out.

    The layer is ``name.weight`` and, where the block has one, ``name.bias``.

    Shapes:
        x: (..., in_features)
        residual: (..., out_features)
        return: (..., out_features)
    """
    return ops.linear(
        x,
        weights[f"{name}.weight"],
        _bias(weights, name),
        norm=norm,
        activation=activation,
        residual=residual,
    )


def linears(
    weights: Mapping[str, Weight],
    names: Sequence[str],
    x: Tensor,
    *,
    norm: ops.Norm | None = None,
) -> tuple[Tensor, ...]:
    """``norm(x)`` through several layers, as queries, keys and values need it.

    Shapes:
        x: (..., in_features)
        return: one a name, (..., out_features)
    """
    return ops.linears(
        x,
        [weights[f"{name}.weight"] for name in names],
        [_bias(weights, name) for name in names],
        norm=norm,
    )


def gated_linear(
    weights: Mapping[str, Weight],
    gate_name: str,
    up_name: str,
    x: Tensor,
    activation: str,
    *,
    norm: ops.Norm | None = None,
) -> Tensor:
    """``activation(norm(x) through the gate) * (norm(x) through up)``.

    Shapes:
        x: (..., in_features)
        return: (..., out_features)
    """
    if f"{gate_name}.bias" in weights or f"{up_name}.bias" in weights:
        gated = linear(weights, gate_name, x, norm=norm, activation=activation)
        return gated * linear(weights, up_name, x, norm=norm)
    gate, up = weights[f"{gate_name}.weight"], weights[f"{up_name}.weight"]
    return ops.gated_linear(x, gate, up, activation, norm=norm)


def vector(weights: Mapping[str, Weight], name: str) -> Tensor:
    """A tensor of a kind that is never quantised: norm, bias, position table."""
    tensor = weights[name]
    assert isinstance(tensor, Tensor), f"{name} must not be quantised"
    return tensor


def _bias(weights: Mapping[str, Weight], name: str) -> Tensor | None:
    return vector(weights, f"{name}.bias") if f"{name}.bias" in weights else None
