"""Attention between projections: heads in and out, the cache, and what a pass hides."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from martlet.kernels import ops
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.rotary import Rotation
from martlet.layers.single_queries import are_few, attend_each
from martlet.layers.windows import attend_within
from martlet.quantization.vectors import KeysValues

__all__ = [
    "DeviceStep",
    "Heads",
    "Pass",
    "cross_attention",
    "merge_heads",
    "self_attention",
    "split_heads",
]


@dataclass(frozen=True, eq=False)
class DeviceStep:
    """What a pass of one new token a row needs where lengths are read on the device.

    Shapes:
        bias: (num_heads, num_distances) float32 by distance to the key, the last for all beyond
    """

    bias: Tensor | None = None
    turn: ops.Turn | None = None


@dataclass(frozen=True, eq=False)
class Pass:
    """What blocks of one kind share in a pass; made by ``embed``, handed to every ``block``.

    ``is_causal`` hides the keys after each query where ``bias`` is None. With a ``window`` a query
    sees its own key and those before it, so many in all: where there are more keys it needs no
    bias beside. ``on_device`` stands for bias and rotation while the cache is stepping.

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
    window: int | None = None


@dataclass(frozen=True)
class Heads:
    """How an attention layer divides its width; ``scale`` multiplies the scores.

    With a ``softcap`` c a score s becomes c * tanh(s / c), before biases come on top. Each of the
    ``num_kv_heads`` serves num_heads / num_kv_heads neighbouring heads of queries.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    scale: float
    softcap: float | None = None

    def __post_init__(self) -> None:
        assert self.num_heads % self.num_kv_heads == 0

    def attend(
        self,
        q: Tensor,
        k: KeysValues,
        v: KeysValues,
        bias: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """``ops.attention`` by these heads."""
        return ops.attention(
            q, k, v, bias, scale=self.scale, is_causal=is_causal, softcap=self.softcap
        )


def self_attention(
    qkv: Sequence[Tensor],
    heads: Heads,
    step: Pass,
    cache: DecoderCache | None,
    layer: int,
    norms: tuple[ops.Norm, ops.Norm] | None = None,
) -> Tensor:
    """What each token gathers from those it may see; its own keys and values go into the cache.

    Without a cache the tokens see nothing but each other. ``norms`` are those of each head of
    queries and of keys, before the rotation.

    Shapes:
        qkv: queries (batch, num_tokens, num_heads * head_dim), then keys and values
            (batch, num_tokens, num_kv_heads * head_dim), before the rotation
        norms: weights (head_dim,)
        return: (batch, num_tokens, num_heads * head_dim)
    """
    queries, keys, values = qkv
    assert queries.shape[2] == heads.num_heads * heads.head_dim
    assert keys.shape[2] == values.shape[2] == heads.num_kv_heads * heads.head_dim
    if step.on_device is not None:
        return _step_attention(qkv, heads, step, cache, layer, norms)
    q, k = split_heads(queries, heads.num_heads), split_heads(keys, heads.num_kv_heads)
    v = split_heads(values, heads.num_kv_heads)
    q_norm, k_norm = norms or (None, None)
    if step.rotation is not None:
        q, k = step.rotation.turn(q, q_norm), step.rotation.turn(k, k_norm)
    else:
        assert norms is None, "head norms come with rotary positions"
    starts = (0,) * q.shape[0] if cache is None else cache.lengths
    if cache is not None and are_few(q):
        cache.write(layer, k, v, step.counts)
        seen = [
            range(start + 1, start + count + 1)
            for start, count in zip(starts, step.counts, strict=True)
        ]
        rows = functools.partial(cache.row, layer)
        return merge_heads(attend_each(q, rows, seen, step.bias, heads.attend, step.window))
    seen_keys, seen_values = (k, v) if cache is None else cache.append(layer, k, v, step.counts)
    if step.window is not None and seen_keys.shape[2] > step.window:
        assert step.bias is None
        mixed = attend_within(step.window, q, (seen_keys, seen_values), starts, heads.attend)
    else:
        mixed = heads.attend(q, seen_keys, seen_values, step.bias, step.is_causal)
    return merge_heads(mixed)


def _step_attention(
    qkv: Sequence[Tensor],
    heads: Heads,
    step: Pass,
    cache: DecoderCache | None,
    layer: int,
    norms: tuple[ops.Norm, ops.Norm] | None,
) -> Tensor:
    """The same of one token a row, over a cache whose lengths are on the device."""
    assert cache is not None
    assert cache.stepping is not None
    assert step.on_device is not None
    assert qkv[0].shape[1] == 1
    return ops.step_attention(
        [part[:, 0] for part in qkv],
        cache.stepping.step_view(layer),
        heads.scale,
        step.on_device.bias,
        step.on_device.turn,
        norms=norms,
        softcap=heads.softcap,
        window=step.window,
    )[:, None]


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
        return merge_heads(attend_each(queries, rows, seen, None, heads.attend))
    k, v = cache.encoder_keys_values(layer, split_project)
    return merge_heads(heads.attend(queries, k, v, step.cross_bias))


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
