"""What each operation means, in plain torch: the definition that other bodies are tested by.

Written to be read, not to be fast. Statistics and softmax are taken in float32 whatever the
activation dtype is; the result comes back in the activation dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from martlet.kernels.cache_view import CacheView
from martlet.kernels.norm import Norm
from martlet.kernels.turn import Turn
from martlet.quantization.scheme import (
    GroupedTensor,
    ObservedWeight,
    QuantizedTensor,
    TiledTensor,
    Weight,
)
from martlet.quantization.vectors import KeysValues, parts_of, quantize_vectors

__all__ = [
    "ACTIVATIONS",
    "add_norm",
    "attention",
    "dense",
    "embedding",
    "gated_linear",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "linears",
    "logits",
    "norm",
    "relu",
    "rms_norm",
    "rotary",
    "silu",
    "step_attention",
]


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight as a float tensor of the given dtype."""
    if isinstance(weight, QuantizedTensor | GroupedTensor | TiledTensor):
        return weight.dequantize(dtype)
    return dense(weight.weight, dtype) if isinstance(weight, ObservedWeight) else weight.to(dtype)


def linear(
    x: Tensor,
    weight: Weight,
    bias: Tensor | None = None,
    *,
    norm: Norm | None = None,
    activation: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(norm(x) @ weight.T + bias) + residual``, every step rounded as ``x`` is.

    The weight is taken at the precision of ``x``.
    """
    y = _normal(x, norm) @ dense(weight, x.dtype).T
    if bias is not None:
        y = y + bias.to(x.dtype)
    if activation is not None:
        y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def linears(
    x: Tensor,
    weights: Sequence[Weight],
    biases: Sequence[Tensor | None],
    *,
    norm: Norm | None = None,
) -> tuple[Tensor, ...]:
    """Several products of one input."""
    pairs = zip(weights, biases, strict=True)
    return tuple(linear(x, weight, bias, norm=norm) for weight, bias in pairs)


def gated_linear(
    x: Tensor, gate: Weight, up: Weight, activation: str, *, norm: Norm | None = None
) -> Tensor:
    """``activation(norm(x) @ gate.T) * (norm(x) @ up.T)``."""
    return linear(x, gate, norm=norm, activation=activation) * linear(x, up, norm=norm)


def logits(
    x: Tensor, weight: Weight, bias: Tensor | None = None, *, norm: Norm | None = None
) -> Tensor:
    """``norm(x) @ weight.T + bias`` in float32."""
    y = (_normal(x, norm) @ dense(weight, x.dtype).T).float()
    return y if bias is None else y + bias.float()


def embedding(weight: Weight, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of ``weight`` that ``token_ids`` names."""
    return dense(weight, dtype)[token_ids]


def norm(x: Tensor, parameters: Norm) -> Tensor:
    """Layer norm, or root mean square norm where there is no bias."""
    if parameters.bias is None:
        return rms_norm(x, parameters.weight, parameters.eps, parameters.offset)
    assert parameters.offset == 0
    return layer_norm(x, parameters.weight, parameters.bias, parameters.eps)


def add_norm(x: Tensor, parameters: Norm, residual: Tensor) -> Tensor:
    """``residual + norm(x)``."""
    return residual + norm(x, parameters)


def _normal(x: Tensor, parameters: Norm | None) -> Tensor:
    return x if parameters is None else norm(x, parameters)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Every row moved to mean 0, scaled to variance 1, then ``* weight + bias``."""
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    variance = (wide - mean).square().mean(-1, keepdim=True)
    normal = (wide - mean) / (variance + eps).sqrt()
    return (normal * weight.float() + bias.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """Every row over its root mean square, rounded to the dtype of ``x``, then ``* weight``.

    With an offset ``* (offset + weight)``, and rounded only then.
    """
    wide = x.float()
    normal = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    if offset:
        return (normal * (offset + weight.float())).to(x.dtype)
    return normal.to(x.dtype) * weight.to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU ("gelu_new" in checkpoints)."""
    wide = x.float()
    inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1.0 + inner.tanh())).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """GELU by the error function."""
    wide = x.float()
    return (0.5 * wide * (1.0 + torch.erf(wide / math.sqrt(2.0)))).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """``x`` times its logistic function."""
    wide = x.float()
    return (wide / (1.0 + (-wide).exp())).to(x.dtype)


def relu(x: Tensor) -> Tensor:
    """``x`` where it is positive, else zero."""
    return x.clamp(min=0)


# By the names that config.json files use.
ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": relu,
    "silu": silu,
}


def rotary(x: Tensor, cos: Tensor, sin: Tensor, is_interleaved: bool = False) -> Tensor:
    """The first components in pairs as complex numbers, times ``cos + i sin``.

    A pair is p and p + num_pairs, or 2p and 2p + 1 where they are interleaved.
    """
    num_pairs = cos.shape[-1]
    turned, rest = x[..., : 2 * num_pairs].float(), x[..., 2 * num_pairs :]
    if is_interleaved:
        pairs = torch.complex(turned[..., 0::2], turned[..., 1::2]) * torch.complex(cos, sin)
        turned = torch.stack((pairs.real, pairs.imag), dim=-1).flatten(-2)
    else:
        pairs = torch.complex(*turned.chunk(2, dim=-1)) * torch.complex(cos, sin)
        turned = torch.cat((pairs.real, pairs.imag), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def attention(  # noqa: PLR0913  (those of ops.attention)
    q: Tensor,
    k: KeysValues,
    v: KeysValues,
    bias: Tensor | None = None,
    *,
    scale: float,
    is_causal: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """``softmax(cap(q @ k.T * scale) + bias) @ v``; causal hides the keys after each query.

    ``cap(s)`` is ``softcap * tanh(s / softcap)``, s itself where there is none. Each head of ``k``
    and ``v`` serves as many neighbouring heads of ``q`` as there are to each.
    """
    share = q.shape[1] // k.shape[1]
    keys, values = (_wide(x).repeat_interleave(share, dim=1) for x in (k, v))
    scores = (q.float() @ keys.transpose(-1, -2)) * scale
    if softcap is not None:
        scores = softcap * (scores / softcap).tanh()
    if bias is not None:
        scores = scores + bias.float()
    if is_causal:
        num_queries, num_keys = scores.shape[-2:]
        hidden = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ values).to(q.dtype)


def _wide(vectors: KeysValues) -> Tensor:
    if isinstance(vectors, Tensor):
        return vectors.float()
    return vectors.data.float() * vectors.scale.float()[..., None]


def step_attention(  # noqa: PLR0913  (those of ops.step_attention)
    qkv: Sequence[Tensor | None],
    cache: CacheView,
    scale: float,
    bias: Tensor | None = None,
    turn: Turn | None = None,
    *,
    norms: tuple[Norm, Norm] | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of one new token a slot; see ``ops.step_attention``."""
    q, k, v = qkv
    assert q is not None
    num_slots, num_kv_heads, capacity, head_dim = cache.keys.shape
    position = cache.lengths.to(torch.int64)  # (num_slots,)
    queries = q.reshape(num_slots, -1, 1, head_dim)
    num_keys = position
    if k is not None and v is not None:
        keys = k.reshape(num_slots, num_kv_heads, 1, head_dim)
        if norms is not None:
            queries, keys = norm(queries, norms[0]), norm(keys, norms[1])
        if turn is not None:
            queries, keys = (_turned(x, turn, position) for x in (queries, keys))
        _append_step(cache.keys, keys[:, :, 0], position)
        _append_step(cache.values, v.reshape(num_slots, num_kv_heads, head_dim), position)
        num_keys = position + 1
    places = torch.arange(capacity, device=q.device)
    # An idle slot looks at one key, whatever that is: nobody reads the result, but a row without
    # any key would not be numbers.
    end = num_keys.clamp(min=1)[:, None]
    unseen = places >= end
    if window is not None:
        unseen = unseen | (places < end - window)
    unseen = unseen[:, None, None]  # (num_slots, 1, 1, capacity)
    mask = torch.zeros(unseen.shape, device=q.device).masked_fill_(unseen, -math.inf)
    if bias is not None:
        distance = (position[:, None] - places).clamp(0, bias.shape[1] - 1)
        mask = mask + bias[:, distance].transpose(0, 1)[:, :, None]
    mixed = attention(queries, cache.keys, cache.values, mask, scale=scale, softcap=softcap)
    return mixed.reshape(num_slots, -1)


def _turned(x: Tensor, turn: Turn, position: Tensor) -> Tensor:
    """One token of each slot (num_slots, heads, 1, head_dim) turned to its position."""
    angle = (position[:, None] * turn.frequency)[:, None, None]
    cos, sin = (turn.factor * part for part in (angle.cos(), angle.sin()))
    return rotary(x, cos, sin, turn.is_interleaved)


def _append_step(memory: KeysValues, new: Tensor, position: Tensor) -> None:
    """Write one token a slot, but where the position lies outside: an idle slot, or a full one.

    What goes into a cache of int8 is quantised as it is.

    Shapes:
        memory: (num_slots, num_kv_heads, capacity, head_dim)
        new: (num_slots, num_kv_heads, head_dim)
        position: (num_slots,) int64
    """
    rows = torch.arange(len(position), device=position.device)
    place = position.clamp(0, memory.shape[2] - 1)
    fresh = new if isinstance(memory, Tensor) else quantize_vectors(new)
    for part, own in zip(parts_of(memory), parts_of(fresh), strict=True):
        is_inside = (place == position).reshape(-1, *[1] * (own.ndim - 1))
        part[rows, :, place] = torch.where(is_inside, own, part[rows, :, place])
