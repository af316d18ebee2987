"""Operations that look at one token alone and have no matrix: see ``ops``, the door to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.kernels.cuda import elementwise, heads
from martlet.kernels.norm import Norm

__all__ = [
    "ACTIVATIONS",
    "add_norm",
    "gelu",
    "gelu_tanh",
    "norm",
    "relu",
    "rotary",
    "silu",
    "turn_heads",
]


def norm(x: Tensor, parameters: Norm) -> Tensor:
    """Every row moved to mean 0 and scaled to variance 1, then ``* weight + bias``.

    Without a bias every row is divided by its root mean square, then ``* weight``. Its statistics
    are float32 (float64 of float64); the quotient is rounded to the dtype of ``x`` before the
    weight comes in, as the models were trained; those with an offset were trained to round after
    ``* (offset + weight)``.

    Shapes:
        x: (..., hidden_size)
        return: the same
    """
    weight, bias, eps = parameters.weight, parameters.bias, parameters.eps
    assert weight.shape == x.shape[-1:]
    assert bias is None or parameters.offset == 0
    if elementwise.can_norm(x, parameters):
        return elementwise.norm(x, parameters)
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    if parameters.offset:
        return (normal * (parameters.offset + weight.to(wide.dtype))).to(x.dtype)
    return normal.to(x.dtype) * weight.to(x.dtype)


def add_norm(x: Tensor, parameters: Norm, residual: Tensor) -> Tensor:
    """``residual + norm(x)``, the norm rounded as ``norm`` does.

    Shapes:
        x, residual: (..., hidden_size)
        return: the same
    """
    assert x.shape == residual.shape
    assert x.dtype == residual.dtype
    wants_gradient = torch.is_grad_enabled() and residual.requires_grad
    if elementwise.can_norm(x, parameters) and not wants_gradient:
        return elementwise.norm(x, parameters, residual.contiguous())
    return residual + norm(x, parameters)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU."""
    return F.gelu(x, approximate="tanh")


def gelu(x: Tensor) -> Tensor:
    """GELU by the error function."""
    return F.gelu(x)


def relu(x: Tensor) -> Tensor:
    """Negative values set to zero."""
    return F.relu(x)


def silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)``, also called swish."""
    return F.silu(x)


# By the names that config.json files use.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
}


def turn_heads(
    x: Tensor, norm_of_heads: Norm | None, cos: Tensor, sin: Tensor, is_interleaved: bool = False
) -> Tensor:
    """``rotary(norm(x), cos, sin)`` of the heads of a pass; without a norm the turn alone.

    Shapes:
        x: (batch, num_heads, num_tokens, head_dim)
        cos, sin: (batch or 1, 1, num_tokens, num_pairs), float32
        return: as x
    """
    if heads.can_turn(x, norm_of_heads, cos, is_interleaved):
        return heads.turn(x, norm_of_heads, cos, sin, is_interleaved)
    normal = x if norm_of_heads is None else norm(x, norm_of_heads)
    return rotary(normal, cos, sin, is_interleaved)


def rotary(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool = False) -> Tensor:
    """The pairs of a head's first components turned by the angles of their token.

    A pair is the components p and p + num_pairs, or 2p and 2p + 1 where they are interleaved; what
    stands behind the last pair stays. Computed in float32 and rounded once.

    Shapes:
        x: (..., num_tokens, head_dim)
        cos, sin: broadcastable to (..., num_tokens, num_pairs), float32
        return: as x
    """
    size = 2 * cos.shape[-1]
    assert 2 * sin.shape[-1] == size <= x.shape[-1]
    assert cos.dtype == sin.dtype == torch.float32
    if size < x.shape[-1]:
        turned = rotary(x[..., :size], cos, sin, is_interleaved)
        return torch.cat((turned, x[..., size:]), dim=-1)
    if is_interleaved:
        even, odd = x[..., 0::2], x[..., 1::2]
        pairs = (even * cos - odd * sin, odd * cos + even * sin)
        return torch.stack(pairs, dim=-1).flatten(-2).to(x.dtype)
    low, high = x.chunk(2, dim=-1)
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
    return turned.to(x.dtype)
