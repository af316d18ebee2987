"""The only door to computation: one function an operation, each checked against ``reference``.

Every function takes activations of one float dtype and gives that dtype back. Weights may be
stored in another one (float16 from the disk under a float32 activation) or quantised; they are
brought over tile by tile, so callers need not cast them. Shapes are our own promise here, files
have been checked before: hence asserts.

Norm, activation and residual are parts of the products that they stand beside, because a card
computes them there without another pass over memory. Whatever a body fuses, it means the steps of
``reference`` in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.kernels import tiled
from martlet.kernels.cpu.int8_linear import int8_linear
from martlet.kernels.norm import Norm
from martlet.quantization.packing import tile_rows_of
from martlet.quantization.scheme import QuantizedTensor, TiledTensor, Weight

__all__ = [
    "ACTIVATIONS",
    "Norm",
    "attention",
    "embedding",
    "gated_linear",
    "gelu",
    "gelu_tanh",
    "linear",
    "linears",
    "norm",
    "relu",
    "rotary",
    "silu",
]


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(norm(x) @ weight.T + bias) + residual``; what is None is left out.

    Shapes:
        x: (..., in_features)
        weight: (out_features, in_features), float of any dtype or int8
        bias: (out_features,)
        residual: (..., out_features), dtype of ``x``
        return: (..., out_features), dtype of ``x``
    """
    out = _product(_normal(x, norm), weight, bias)
    if activation is not None:
        out = ACTIVATIONS[activation](out)
    if residual is not None:
        assert residual.shape == out.shape
        assert residual.dtype == out.dtype
        out += residual
    return out


def linears(
    x: Tensor,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    *,
    norm: Norm | None = None,
) -> tuple[Tensor, ...]:
    """``norm(x) @ weight.T + bias`` for several weights, as for queries, keys and values.

    Shapes:
        x: (..., in_features)
        weights: (out_features, in_features) each, with an out_features of their own
        biases: one a weight, (out_features,)
        return: one a weight, (..., out_features), dtype of ``x``
    """
    normal = _normal(x, norm)
    return tuple(
        _product(normal, weight, bias) for weight, bias in zip(weights, biases, strict=True)
    )


def gated_linear(
    x: Tensor, gate: Weight, up: Weight, activation: str, *, norm: Norm | None = None
) -> Tensor:
    """``activation(norm(x) @ gate.T) * (norm(x) @ up.T)``.

    Shapes:
        x: (..., in_features)
        gate, up: (out_features, in_features)
        return: (..., out_features), dtype of ``x``
    """
    assert gate.shape == up.shape
    normal = _normal(x, norm)
    return ACTIVATIONS[activation](_product(normal, gate, None)) * _product(normal, up, None)


def _normal(x: Tensor, parameters: Norm | None) -> Tensor:
    return x if parameters is None else norm(x, parameters)


def _product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    out_features, in_features = weight.shape
    assert x.shape[-1] == in_features, f"{tuple(x.shape)} does not fit a weight {weight.shape}"
    assert bias is None or bias.shape == (out_features,)
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    rows = x.reshape(-1, in_features)
    if isinstance(weight, QuantizedTensor) and x.device.type == "cpu":
        out = int8_linear(rows, weight)
    else:
        out = tiled.linear(rows, weight)
    if bias is not None:
        out += bias
    return out.view(*x.shape[:-1], out_features)


def embedding(weight: Weight, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows that ``token_ids`` names, as floats of ``dtype``; only those rows are converted.

    Shapes:
        weight: (num_embeddings, hidden_size), float or int8
        token_ids: (...) int64
        return: (..., hidden_size)
    """
    if isinstance(weight, QuantizedTensor):
        rows = F.embedding(token_ids, weight.data).to(torch.float32)
        return (rows * weight.scale[token_ids].to(torch.float32)[..., None]).to(dtype)
    if isinstance(weight, TiledTensor):
        integers = tile_rows_of(weight.data, token_ids, weight.shape[1])
        return (integers.to(torch.float32) * weight.scale[token_ids][..., None]).to(dtype)
    return F.embedding(token_ids, weight).to(dtype)


def norm(x: Tensor, parameters: Norm) -> Tensor:
    """Every row moved to mean 0 and scaled to variance 1, then ``* weight + bias``.

    Without a bias every row is divided by its root mean square, then ``* weight``. Its statistics
    are float32; the quotient is rounded to the dtype of ``x`` before the weight comes in, as the
    models were trained.

    Shapes:
        x: (..., hidden_size)
        return: the same
    """
    weight, bias, eps = parameters.weight, parameters.bias, parameters.eps
    assert weight.shape == x.shape[-1:]
    if bias is not None:
        return F.layer_norm(x, weight.shape, weight.to(x.dtype), bias.to(x.dtype), eps)
    wide = x.to(torch.float32)
    normal = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return normal.to(x.dtype) * weight.to(x.dtype)


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


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Every pair (component p, component p + head_dim / 2) turned by the angle of its token.

    Computed in float32 and rounded once.

    Shapes:
        x: (..., num_tokens, head_dim)
        cos, sin: broadcastable to (..., num_tokens, head_dim / 2), float32
    """
    assert 2 * cos.shape[-1] == 2 * sin.shape[-1] == x.shape[-1]
    assert cos.dtype == sin.dtype == torch.float32
    low, high = x.chunk(2, dim=-1)
    turned = torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1)
    return turned.to(x.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float,
    is_causal: bool = False,
) -> Tensor:
    """``softmax(q @ k.T * scale + bias) @ v``.

    Shapes:
        q: (batch, num_heads, num_queries, head_dim)
        k, v: (batch, num_kv_heads, num_keys, head_dim); each serves num_heads / num_kv_heads
            neighbouring heads of q
        bias: broadcastable to (batch, num_heads, num_queries, num_keys); added after the scale
        return: (batch, num_heads, num_queries, head_dim)

    ``is_causal`` hides the keys after each query; it needs as many keys as queries and no bias.
    """
    assert k.shape == v.shape
    assert (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    assert q.shape[1] % k.shape[1] == 0
    assert not is_causal or (bias is None and q.shape[2] == k.shape[2])
    is_grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=bias, scale=scale, is_causal=is_causal, enable_gqa=is_grouped
    )
