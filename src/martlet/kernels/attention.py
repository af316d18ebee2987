"""Attention of passes, by torch's own kernels; ``ops.attention`` says what it computes."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.quantization.vectors import Int8Vectors, KeysValues

__all__ = ["attention", "capped_attention"]

# Integers that become floats at a time, keys and values each: 1 MiB stays in a processor's
# second-level cache, and is not asked of the system anew for every layer.
_ELEMENTS_AT_ONCE = 1 << 18
# Scores that exist at a time where torch's kernels cannot keep them on the chip: 32 MiB.
_SCORES_AT_ONCE = 1 << 23


def attention(
    q: Tensor, k: KeysValues, v: KeysValues, bias: Tensor | None, scale: float, is_causal: bool
) -> Tensor:
    """See ``ops.attention``; shapes are checked there."""
    if isinstance(k, Int8Vectors):
        assert isinstance(v, Int8Vectors)
        if q.device.type == "cpu" and q.shape[2] == 1:
            return _one_query(q, k, v, bias, scale, None)
        k, v = k.dequantize(q.dtype), v.dequantize(q.dtype)
    assert isinstance(v, Tensor)
    if q.is_cuda and torch.backends.cuda.cudnn_sdp_enabled():  # type: ignore[no-untyped-call]
        return _without_cudnn(q, k, v, bias, scale, is_causal)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=bias,
        scale=scale,
        is_causal=is_causal,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _without_cudnn(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, is_causal: bool
) -> Tensor:
    """CuDNN plans anew for every length that it has not seen: 70 ms on an H200, at every new text.

    Its switch is one for the process, so it is put back.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        return attention(q, k, v, bias, scale, is_causal)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def capped_attention(  # noqa: PLR0913  (those of ops.attention)
    q: Tensor,
    k: KeysValues,
    v: KeysValues,
    bias: Tensor | None,
    scale: float,
    is_causal: bool,
    softcap: float,
) -> Tensor:
    """The same with capped scores, which torch's kernels do not know: some queries at a time."""
    if isinstance(k, Int8Vectors):
        assert isinstance(v, Int8Vectors)
        if q.device.type == "cpu" and q.shape[2] == 1:
            return _one_query(q, k, v, bias, scale, softcap)
        k, v = k.dequantize(q.dtype), v.dequantize(q.dtype)
    assert isinstance(v, Tensor)
    batch, num_heads, num_queries, head_dim = q.shape
    num_kv_heads, num_keys = k.shape[1:3]
    # (batch, num_kv_heads, heads of each, tokens, head_dim)
    queries = q.float().reshape(batch, num_kv_heads, -1, num_queries, head_dim) * scale
    keys, values = k.float()[:, :, None], v.float()[:, :, None]
    if bias is not None:
        bias = bias.float().expand(batch, num_heads, num_queries, num_keys)
        bias = bias.view(batch, num_kv_heads, -1, num_queries, num_keys)
    mixed = torch.empty_like(queries)
    chunk = max(1, _SCORES_AT_ONCE // (batch * num_heads * num_keys))
    for first in range(0, num_queries, chunk):
        last = min(first + chunk, num_queries)
        seen = last if is_causal else num_keys
        scores = queries[..., first:last, :] @ keys[..., :seen, :].transpose(-1, -2)
        scores = _capped(scores, softcap)
        if bias is not None:
            scores += bias[..., first:last, :]
        if is_causal:
            ones = torch.ones(last - first, seen, dtype=torch.bool, device=q.device)
            scores.masked_fill_(ones.triu(first + 1), -math.inf)
        mixed[..., first:last, :] = scores.softmax(-1) @ values[..., :seen, :]
    return mixed.reshape(q.shape).to(q.dtype)


def _capped(scores: Tensor, softcap: float) -> Tensor:
    if torch.is_grad_enabled():
        return (scores / softcap).tanh() * softcap
    return scores.div_(softcap).tanh_().mul_(softcap)


def _one_query(
    q: Tensor,
    k: Int8Vectors,
    v: Int8Vectors,
    bias: Tensor | None,
    scale: float,
    softcap: float | None,
) -> Tensor:
    """One query a row, as decode steps on a processor have: the integers are multiplied as floats.

    Scales of keys multiply the scores and those of values the probabilities, so that no float
    copy of a vector is written twice.

    Shapes: as ``ops.attention``, with num_queries 1
    """
    batch, num_kv_heads, num_keys, head_dim = k.shape
    num_heads = q.shape[1]
    groups = (batch, num_kv_heads, num_heads // num_kv_heads)
    queries = q.float().reshape(*groups, head_dim) * scale
    if bias is not None:
        bias = bias.float().expand(batch, num_heads, 1, num_keys).reshape(*groups, num_keys)
    heads_at_once = max(1, _ELEMENTS_AT_ONCE // max(1, batch * num_keys * head_dim))
    if heads_at_once >= num_kv_heads:
        mixed = _some_heads(queries, k, v, bias, softcap)
    else:
        parts = []
        for first in range(0, num_kv_heads, heads_at_once):
            own = (slice(None), slice(first, first + heads_at_once))
            own_bias = None if bias is None else bias[own]
            parts.append(_some_heads(queries[own], k[own], v[own], own_bias, softcap))
        mixed = torch.cat(parts, dim=1)
    return mixed.reshape(q.shape).to(q.dtype)


def _some_heads(
    queries: Tensor, k: Int8Vectors, v: Int8Vectors, bias: Tensor | None, softcap: float | None
) -> Tensor:
    """What queries (batch, num_kv_heads, heads of each, head_dim) gather; bias is (..., num_keys).

    As few operations as there can be: for short texts their number is what takes time.
    """
    scores = (queries @ k.data.float().transpose(-1, -2)).mul_(k.scale[:, :, None])
    if softcap is not None:
        scores = _capped(scores, softcap)
    if bias is not None:
        scores += bias
    return scores.softmax(-1).mul_(v.scale[:, :, None]) @ v.data.float()
