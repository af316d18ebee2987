"""The tensors of the layers that blocks are made of, by the name of the layer in the block."""

from __future__ import annotations

from martlet.models.architecture import TensorSpec

__all__ = ["linear_specs", "norm_specs"]


def norm_specs(name: str, width: int, *, has_bias: bool = True) -> tuple[TensorSpec, ...]:
    """A layer norm, or without a bias a root mean square norm."""
    weight = TensorSpec(f"{name}.weight", (width,), "other")
    return (weight, TensorSpec(f"{name}.bias", (width,), "other")) if has_bias else (weight,)


def linear_specs(
    name: str, out_features: int, in_features: int, *, has_bias: bool = True
) -> tuple[TensorSpec, ...]:
    """A linear layer, with or without a bias."""
    weight = TensorSpec(f"{name}.weight", (out_features, in_features), "linear")
    bias = TensorSpec(f"{name}.bias", (out_features,), "other")
    return (weight, bias) if has_bias else (weight,)
