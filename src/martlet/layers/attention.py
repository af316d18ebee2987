"""Attention between projections: heads in and out, the cache, and masks as additive biases."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.kernels import ops
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.rotary import Rotation
from martlet.layers.single_queries import are_few, attend_each

__all__ = [
    "DeviceStep",
    "Heads",
    "Pass",
    "aligned_bias",
    "causal_bias",
    "cross_attention",
    "decoder_mask",
    "hidden_value",
    "merge_heads",
    "padding_bias",
    "self_attention",
    "split_heads",
]


@dataclass(frozen=True, eq=False)
class DeviceStep:
    """What a pass of one new token a row needs where lengths are read on the device.

    Shapes:
        bias: (num_heads, num_distances) float32 by distance to the key, the last for all beyond
        frequency: (head_dim / 2,) float32 of rotary positions
    """

    bias: Tensor | None = None
    frequency: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Pass:
    """What all blocks of a pass share; made by ``embed``, handed to every ``block``.

    ``is_causal`` hides the keys after each query where ``bias`` is None. ``on_device`` stands for
    everything but ``counts`` while the cache is stepping.

    Shapes:
        counts: one a row, how many of its tokens are real
        bias: (batch or 1, num_heads or 1, num_tokens, num_keys)
        cross_bias: (batch, 1, 1, num_encoder_tokens)
    """

    counts: list[int]
    bias: Tensor | None
    is_causal: bool
    cross_bias: Tensor | None = None
    rotation: Rotation | None = None
    on_device: DeviceStep | None = None


@dataclass(frozen=True)
class Heads:
    """How an attention layer divides its width; ``scale`` multiplies the scores.

    Each of the ``num_kv_heads`` serves num_heads / num_kv_heads neighbouring heads of queries.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float

    def __post_init__(self) -> None:
        assert self.num_heads % self.num_kv_heads == 0


def self_attention(
    qkv: Sequence[Tensor], heads: Heads, step: Pass, cache: DecoderCache | None, layer: int
) -> Tensor:
    """What each token gathers from those it may see; its own keys and values go into the cache.

    Without a cache the tokens see nothing but each other.

    Shapes:
        qkv: queries (batch, num_tokens, num_heads * head_dim), then keys and values
            (batch, num_tokens, num_kv_heads * head_dim), before the rotation
        return: (batch, num_tokens, num_heads * head_dim)
    """
    queries, keys, values = qkv
    assert queries.shape[2] == heads.num_heads * heads.head_dim
    assert keys.shape[2] == values.shape[2] == heads.num_kv_heads * heads.head_dim
    if step.on_device is not None:
        assert cache is not None
        assert cache.stepping is not None
        assert queries.shape[1] == 1
        return ops.step_attention(
            [part[:, 0] for part in qkv],
            cache.stepping.step_view(layer),
            heads.scale,
            step.on_device.bias,
            step.on_device.frequency,
        )[:, None]
    q = split_heads(queries, heads.num_heads)
    k, v = split_heads(keys, heads.num_kv_heads), split_heads(values, heads.num_kv_heads)
    if step.rotation is not None:
        q, k = step.rotation.turn(q), step.rotation.turn(k)
    if cache is not None and are_few(q):
        cache.write(layer, k, v, step.counts)
        seen = [
            range(start + 1, start + count + 1)
            for start, count in zip(cache.lengths, step.counts, strict=True)
        ]
        rows = functools.partial(cache.row, layer)
        return merge_heads(attend_each(q, rows, seen, step.bias, heads.scale))
    seen_keys, seen_values = (k, v) if cache is None else cache.append(layer, k, v, step.counts)
    mixed = ops.attention(
        q, seen_keys, seen_values, step.bias, scale=heads.scale, is_causal=step.is_causal
    )
    return merge_heads(mixed)


def cross_attention(
    q: Tensor,
    project: Callable[[Tensor], Sequence[Tensor]],
    heads: Heads,
    step: Pass,
    cache: DecoderCache,
    layer: int,
) -> Tensor:
    """What each token gathers from the encoder's output that the cache holds.

    ``project`` makes keys and values of that output, the first time only.

    Shapes:
        q: (batch, num_tokens, num_heads * head_dim)
        project: (batch, num_encoder_tokens, hidden_size) to keys and values,
            (batch, num_encoder_tokens, num_kv_heads * head_dim) each
        return: (batch, num_tokens, num_heads * head_dim)
    """

    def split_project(encoder_output: Tensor) -> tuple[Tensor, Tensor]:
        keys, values = project(encoder_output)
        return split_heads(keys, heads.num_kv_heads), split_heads(values, heads.num_kv_heads)

    assert q.shape[2] == heads.num_heads * heads.head_dim
    if step.on_device is not None:
        assert cache.stepping is not None
        view = cache.stepping.encoder_step_view(layer)
        return ops.step_attention((q[:, 0], None, None), view, heads.scale)[:, None]
    queries = split_heads(q, heads.num_heads)
    if are_few(queries):
        cache.hold_encoder_output(layer, split_project)
        seen = [
            [num_tokens] * count
            for num_tokens, count in zip(cache.encoder_lengths, step.counts, strict=True)
        ]
        rows = functools.partial(cache.encoder_row, layer)
        return merge_heads(attend_each(queries, rows, seen, None, heads.scale))
    k, v = cache.encoder_keys_values(layer, split_project)
    return merge_heads(ops.attention(queries, k, v, step.cross_bias, scale=heads.scale))


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """A view with one head an axis.

    Shapes:
        x: (batch, num_tokens, num_heads * head_dim)
        return: (batch, num_heads, num_tokens, head_dim)
    """
    batch, num_tokens, width = x.shape
    return x.view(batch, num_tokens, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """The opposite of ``split_heads``.

    Shapes:
        x: (batch, num_heads, num_tokens, head_dim)
        return: (batch, num_tokens, num_heads * head_dim)
    """
    return x.transpose(1, 2).flatten(2)


def hidden_value(dtype: torch.dtype) -> float:
    """The bias of a key that must not be seen.

    Finite, so that a row without any visible key (an idle slot) gives numbers nobody reads, not
    NaN; and half of the smallest number, so that a negative score on top does not reach -inf.
    """
    return torch.finfo(dtype).min / 2


def causal_bias(starts: Sequence[int], num_queries: int, num_keys: int, like: Tensor) -> Tensor:
    """Hides the keys after each query; query i of a row stands at position ``start + i``.

    A padding query sees the keys up to its own position too: what it gives is never read.

    Shapes:
        starts: one a row
        return: (batch or 1, 1, num_queries, num_keys); 1 when all rows start alike
    """
    first = starts[:1] if len(set(starts)) == 1 else starts
    start = torch.tensor(first, device=like.device)[:, None, None, None]
    position = start + torch.arange(num_queries, device=like.device)[:, None]
    hidden = torch.arange(num_keys, device=like.device) > position
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
        hidden, hidden_value(like.dtype)
    )


def decoder_mask(
    starts: Sequence[int], num_queries: int, num_keys: int, like: Tensor
) -> tuple[Tensor | None, bool]:
    """What ``ops.attention`` takes as bias and ``is_causal`` for a decoder without encoder.

    The bias is that of ``causal_bias``; None where the flag, or nothing at all, does the same.
    """
    if len(set(starts)) == 1:
        if num_queries == 1:
            return None, False  # every row sees all its keys
        if starts[0] == 0 and num_keys == num_queries:
            return None, True
    return aligned_bias(causal_bias(starts, num_queries, num_keys, like)), False


_ALIGNED_ELEMENTS = 8


def aligned_bias(bias: Tensor) -> Tensor:
    """The same bias, on a GPU with gaps between its rows so that each begins where vectors may.

    Attention would make such a copy itself, in every layer.

    Shapes:
        bias: (..., num_keys)
        return: the same
    """
    num_keys = bias.shape[-1]
    if not bias.is_cuda or num_keys % _ALIGNED_ELEMENTS == 0:
        return bias
    return F.pad(bias, (0, -num_keys % _ALIGNED_ELEMENTS))[..., :num_keys]


def padding_bias(lengths: Sequence[int], num_keys: int, like: Tensor) -> Tensor | None:
    """Hides the keys after each row's length; None when there are none.

    Shapes:
        lengths: one a row
        return: (batch, 1, 1, num_keys)
    """
    if all(length == num_keys for length in lengths):
        return None
    limit = torch.tensor(lengths, device=like.device)[:, None, None, None]
    hidden = torch.arange(num_keys, device=like.device) >= limit
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
        hidden, hidden_value(like.dtype)
    )
