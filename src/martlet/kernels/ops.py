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

from martlet.kernels import reference, tiled
from martlet.kernels.cache_view import CacheView
from martlet.kernels.cpu.int8_linear import int8_linear
from martlet.kernels.cuda import decode, elementwise, few_rows, many_rows, sampling
from martlet.kernels.cuda.driver import break_launch_chain
from martlet.kernels.norm import Norm
from martlet.kernels.sample_state import SampleState
from martlet.kernels.step_state import StepState
from martlet.quantization.packing import tile_rows_of
from martlet.quantization.scheme import QuantizedTensor, TiledTensor, Weight

__all__ = [
    "ACTIVATIONS",
    "Norm",
    "attention",
    "break_launch_chain",
    "embedding",
    "finish_step",
    "gated_linear",
    "gelu",
    "gelu_tanh",
    "linear",
    "linears",
    "logits",
    "most_probable",
    "norm",
    "relu",
    "rotary",
    "sample",
    "silu",
    "step_attention",
    "step_embedding",
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
    if residual is not None:
        assert residual.dtype == x.dtype
        assert residual.shape == (*x.shape[:-1], weight.shape[0])
    tiles = _tiles(x, [weight])
    if tiles is not None:
        rows = x.reshape(-1, x.shape[-1])
        added = None if residual is None else residual.reshape(rows.shape[0], -1)
        epilogue = few_rows.Epilogue(activation, added)
        return _tiled_product(rows, tiles, [bias], norm, epilogue).view(*x.shape[:-1], -1)
    out = _product(_normal(x, norm), weight, bias)
    if activation is not None:
        out = ACTIVATIONS[activation](out)
    if residual is not None:
        out += residual
    return out


def logits(x: Tensor, weight: Weight, *, norm: Norm | None = None) -> Tensor:
    """``norm(x) @ weight.T`` in float32: what tokens are chosen by.

    Shapes:
        x: (..., in_features)
        weight: (vocab_size, in_features)
        return: (..., vocab_size) float32
    """
    tiles = _tiles(x, [weight])
    if tiles is not None:
        rows = x.reshape(-1, x.shape[-1])
        epilogue = few_rows.Epilogue(dtype=torch.float32)
        out = _tiled_product(rows, tiles, [None], norm, epilogue)
        return out.view(*x.shape[:-1], -1)
    return _product(_normal(x, norm), weight, None).float()


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
    tiles = _tiles(x, weights)
    if tiles is not None:
        rows = x.reshape(-1, x.shape[-1])
        out = _tiled_product(rows, tiles, biases, norm, few_rows.Epilogue())
        sizes = [weight.shape[0] for weight in weights]
        return torch.split(out.view(*x.shape[:-1], -1), sizes, dim=-1)
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
    tiles = _tiles(x, [gate, up])
    if tiles is not None:
        rows = x.reshape(-1, x.shape[-1])
        if _is_few(rows):
            out = few_rows.gated_linear(rows.contiguous(), tiles[0], tiles[1], activation, norm)
        else:
            out = many_rows.gated_linear(_normal(rows, norm), tiles[0], tiles[1], activation)
        return out.view(*x.shape[:-1], -1)
    normal = _normal(x, norm)
    return ACTIVATIONS[activation](_product(normal, gate, None)) * _product(normal, up, None)


def _tiles(x: Tensor, weights: Sequence[Weight]) -> list[TiledTensor] | None:
    """The weights where the GPU's own kernels take them, else None."""
    tiles = [weight for weight in weights if isinstance(weight, TiledTensor)]
    return tiles if x.is_cuda and len(tiles) == len(weights) else None


def _is_few(rows: Tensor) -> bool:
    return rows.shape[0] <= few_rows.MAX_ROWS and rows.shape[1] % 8 == 0


def _tiled_product(
    rows: Tensor,
    tiles: Sequence[TiledTensor],
    biases: Sequence[Tensor | None],
    norm: Norm | None,
    epilogue: few_rows.Epilogue,
) -> Tensor:
    if _is_few(rows):
        return few_rows.linear(rows.contiguous(), tiles, biases, norm, epilogue)
    return many_rows.linear(_normal(rows, norm), tiles, biases, epilogue)


def _normal(x: Tensor, parameters: Norm | None) -> Tensor:
    return x if parameters is None else norm(x, parameters)


def _product(x: Tensor, weight: Weight, bias: Tensor | None) -> Tensor:
    out_features, in_features = weight.shape
    assert x.shape[-1] == in_features, f"{tuple(x.shape)} does not fit a weight {weight.shape}"
    assert bias is None or bias.shape == (out_features,)
    if isinstance(weight, Tensor) and weight.dtype == x.dtype:
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))
    rows = x.reshape(-1, in_features)
    if isinstance(weight, TiledTensor):
        out = rows @ weight.dequantize(x.dtype).T
    elif isinstance(weight, QuantizedTensor) and x.device.type == "cpu":
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
        if token_ids.is_cuda:
            rows = decode.embed(token_ids.reshape(-1), weight, dtype)
            return rows.view(*token_ids.shape, -1)
        integers = tile_rows_of(weight.data, token_ids, weight.shape[1])
        return (integers.to(torch.float32) * weight.scale[token_ids][..., None]).to(dtype)
    return F.embedding(token_ids, weight).to(dtype)


def step_embedding(
    weight: Weight, token_ids: Tensor, dtype: torch.dtype, positions: Tensor, places: Tensor
) -> Tensor:
    """The rows of two tables together: by token, and by the place that each slot has come to.

    Shapes:
        weight: (num_embeddings, hidden_size), float or int8
        token_ids: (num_slots, 1) int64
        positions: (num_positions, hidden_size)
        places: (num_slots,) int32; the last position stands for all beyond
        return: (num_slots, 1, hidden_size)
    """
    if token_ids.is_cuda and isinstance(weight, TiledTensor) and positions.dtype == dtype:
        return decode.embed(token_ids[:, 0], weight, dtype, positions, places)[:, None]
    known = places.clamp(max=positions.shape[0] - 1).to(torch.int64)[:, None]
    return embedding(weight, token_ids, dtype) + embedding(positions, known, dtype)


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
    if elementwise.can_norm(x, parameters):
        return elementwise.norm(x, parameters)
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


def step_attention(
    qkv: Sequence[Tensor | None],
    cache: CacheView,
    scale: float,
    bias: Tensor | None = None,
    frequency: Tensor | None = None,
) -> Tensor:
    """Attention of one new token a slot over a cache whose lengths are read on the device.

    The new keys and values are written into the cache; without them (None) the cache stays as it
    is, as in cross attention.

    Shapes:
        qkv: queries (num_slots, num_heads * head_dim), keys and values
            (num_slots, num_kv_heads * head_dim)
        bias: (num_heads, num_distances) float32 by the distance to the key, the last for all beyond
        frequency: (head_dim / 2,) float32: turns queries and keys as ``rotary`` does
        return: (num_slots, num_heads * head_dim)
    """
    q, k, v = qkv
    assert q is not None
    head_dim = cache.keys.shape[3]
    group_width = q.shape[1] // cache.keys.shape[1]
    if q.is_cuda and head_dim % 8 == 0 and group_width <= decode.MAX_GROUP_WIDTH:
        return decode.attention((q, k, v), cache, scale, bias, frequency)
    return reference.step_attention(qkv, cache, scale, bias, frequency)


def most_probable(logits: Tensor, suppressed: Tensor | None, state: StepState) -> None:
    """Choose the most probable token of each slot that may be chosen, the first among equals.

    Its log-probability is that among all tokens. A logit that is not finite sets the status.

    Shapes:
        logits: (num_slots, vocab_size) float32
        suppressed: (vocab_size,) bool, True = must not be chosen
    """
    if logits.is_cuda:
        decode.most_probable(logits, suppressed, state)
    else:
        reference.most_probable(logits, suppressed, state)


def sample(
    logits: Tensor, suppressed: Tensor | None, chances: SampleState, state: StepState
) -> None:
    """Choose the next token of each slot by the slot's own settings, and count it there.

    Order: suppressed tokens, repetition penalty, presence and frequency penalty, temperature,
    top-k, top-p, min-p, one draw; of equal tokens the lower id comes first everywhere. With
    temperature 0 nothing is drawn. The log-probability is that among all tokens, before all this;
    it is not a number where a logit is not finite, and -inf where all tokens are suppressed.

    Shapes:
        logits: (num_slots, vocab_size) float32
        suppressed: (vocab_size,) bool, True = must not be chosen
    """
    if logits.is_cuda:
        sampling.sample(logits, suppressed, chances, state)
    else:
        reference.sample(logits, suppressed, chances, state)


def finish_step(state: StepState, ending_ids: Tensor) -> None:
    """Note the chosen tokens, count them, and mark the slots whose text they end.

    Shapes:
        ending_ids: (num_ending,) int32
    """
    if ending_ids.is_cuda:
        decode.finish_step(state, ending_ids)
    else:
        reference.finish_step(state, ending_ids)
