"""What a decode step computes beside products: embedding, attention over the cache, next token.

Every length is read on the device, so that one captured step serves all positions of a text.
``attention.cu``, ``embed.cu`` and ``step.cu`` say how.
"""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from martlet.kernels.cache_view import CacheView
from martlet.kernels.cuda.driver import Kernel, load_kernels
from martlet.kernels.cuda.few_rows import ACTIVATION_TYPES
from martlet.kernels.cuda.linear_arguments import format_defines
from martlet.kernels.step_state import StepState
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import TiledTensor
from martlet.quantization.vectors import Int8Vectors, parts_of

__all__ = [
    "MAX_GROUP_WIDTH",
    "attention",
    "attention_defines",
    "embed",
    "finish_step",
    "most_probable",
]

MAX_GROUP_WIDTH = 1024
"""Largest product of head_dim and query heads for each key/value head."""

_WARPS = 8
_STRETCH_TOKENS = 256  # keys of a block: fewer do not pay for joining them
_MAX_STRETCHES = 64


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("keys", ctypes.c_void_p),
        ("values", ctypes.c_void_p),
        ("key_scales", ctypes.c_void_p),
        ("value_scales", ctypes.c_void_p),
        ("lengths", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("frequency", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
        ("finished", ctypes.c_void_p),
        ("q_stride", ctypes.c_int),
        ("k_stride", ctypes.c_int),
        ("v_stride", ctypes.c_int),
        ("capacity", ctypes.c_int),
        ("stretch", ctypes.c_int),
        ("num_distances", ctypes.c_int),
        ("scale", ctypes.c_float),
    )


def attention(
    qkv: tuple[Tensor, Tensor | None, Tensor | None],
    cache: CacheView,
    scale: float,
    bias: Tensor | None = None,
    frequency: Tensor | None = None,
) -> Tensor:
    """Attention of one token a slot; new keys and values, where given, go into the cache first.

    Shapes:
        qkv: queries (num_slots, num_heads * head_dim), keys and values
            (num_slots, num_kv_heads * head_dim) or None; rows may be apart
        bias: (num_heads, num_distances) float32 by the distance to the key, the last for all beyond
        frequency: (head_dim / 2,) float32, turns queries and new keys to their positions
        return: (num_slots, num_heads * head_dim)
    """
    q, k, v = qkv
    num_slots, num_kv_heads, capacity, head_dim = cache.keys.shape
    keys, values = parts_of(cache.keys), parts_of(cache.values)
    assert cache.keys.is_contiguous()
    assert cache.values.is_contiguous()
    num_heads = q.shape[1] // head_dim
    group = num_heads // num_kv_heads
    assert group * head_dim <= MAX_GROUP_WIDTH
    stretches = min(-(-capacity // _STRETCH_TOKENS), _MAX_STRETCHES)
    stretch = -(-capacity // stretches)
    y = torch.empty((num_slots, num_heads * head_dim), dtype=q.dtype, device=q.device)
    partial, finished = _scratch(
        q.device, num_slots * num_kv_heads * stretches * group * (head_dim + 2)
    )
    assert num_slots * num_kv_heads <= finished.shape[0]
    arguments = _Arguments(
        q=q.data_ptr(),
        keys=keys[0].data_ptr(),
        values=values[0].data_ptr(),
        lengths=cache.lengths.data_ptr(),
        y=y.data_ptr(),
        partial=partial.data_ptr(),
        finished=finished.data_ptr(),
        q_stride=q.stride(0),
        capacity=capacity,
        stretch=stretch,
        scale=scale,
    )
    is_int8 = isinstance(cache.keys, Int8Vectors)
    if is_int8:
        arguments.key_scales, arguments.value_scales = keys[1].data_ptr(), values[1].data_ptr()
    if k is not None and v is not None:
        arguments.k, arguments.v = k.data_ptr(), v.data_ptr()
        arguments.k_stride, arguments.v_stride = k.stride(0), v.stride(0)
    if bias is not None:
        assert bias.dtype == torch.float32
        arguments.bias, arguments.num_distances = bias.data_ptr(), bias.shape[1]
    if frequency is not None:
        assert frequency.dtype == torch.float32
        arguments.frequency = frequency.data_ptr()
    _attention_kernel(q.device, q.dtype, head_dim, group, is_int8)(
        (num_kv_heads, num_slots, stretches),
        _WARPS * 32,
        arguments,
        shared_bytes=4 * _WARPS * group * (head_dim + 2),
        dependent=True,
    )
    return y


def attention_defines(
    dtype: torch.dtype, head_dim: int, group: int, is_int8: bool
) -> dict[str, int]:
    """The compile-time choices of attention.cu; ``is_int8`` is the form of the cache."""
    defines = {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype], "HEAD_DIM": head_dim, "GROUP": group}
    return {**defines, "CACHE_INT8": 1} if is_int8 else defines


@functools.lru_cache(maxsize=64)
def _attention_kernel(
    device: torch.device, dtype: torch.dtype, head_dim: int, group: int, is_int8: bool
) -> Kernel:
    defines = attention_defines(dtype, head_dim, group, is_int8)
    return load_kernels("attention", defines, device)["attention"]


# Kernels on one stream run one after the other, so they share one scratch memory; the counters in
# it are zero between launches.
_scratch_memory: dict[torch.device, tuple[Tensor, Tensor]] = {}
_MAX_PAIRS = 1 << 14  # slots x key/value heads


def _scratch(device: torch.device, num_floats: int) -> tuple[Tensor, Tensor]:
    have = _scratch_memory.get(device)
    if have is None or have[0].shape[0] < num_floats:
        assert not torch.cuda.is_current_stream_capturing(), "a step runs once before its capture"
        finished = torch.zeros(_MAX_PAIRS, dtype=torch.int32, device=device)
        partial = torch.empty(max(num_floats, 1 << 18), dtype=torch.float32, device=device)
        have = _scratch_memory[device] = (partial, finished)
    return have


def embed(
    token_ids: Tensor,
    weight: TiledTensor,
    dtype: torch.dtype,
    positions: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Rows of a tiled table, plus the row of a position table that each slot has come to.

    Shapes:
        token_ids: (rows,) int64
        positions: (num_positions, hidden_size) of ``dtype``
        lengths: (rows,) int32
        return: (rows, hidden_size)
    """
    (rows,), hidden_size = token_ids.shape, weight.shape[1]
    y = torch.empty((rows, hidden_size), dtype=dtype, device=token_ids.device)
    num_positions = 0
    if positions is not None:
        assert lengths is not None
        assert positions.dtype == dtype
        num_positions = positions.shape[0]
    _embed_kernel(y.device, dtype, weight.format)(
        (rows, 1, 1),
        256,
        token_ids,
        weight.data,
        weight.groups,
        weight.scale,
        positions,
        lengths,
        num_positions,
        y,
        hidden_size,
        dependent=True,
    )
    return y


def most_probable(logits: Tensor, suppressed: Tensor | None, state: StepState) -> None:
    """Choose the most probable token of each slot that is not suppressed.

    Shapes:
        logits: (num_slots, vocab_size) float32, contiguous
        suppressed: (vocab_size,) or (num_slots, vocab_size) bool, contiguous
    """
    num_slots, vocab_size = logits.shape
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    _step_kernel(logits.device, torch.float16, "most_probable")(
        (num_slots, 1, 1),
        1024,
        logits,
        suppressed,
        vocab_size if suppressed is not None and suppressed.ndim == 2 else 0,
        vocab_size,
        state.token_ids,
        state.logprobs,
        state.status,
        dependent=True,
    )


def finish_step(state: StepState, ending_ids: Tensor) -> None:
    """Note the chosen tokens, count them, and mark the slots whose text ends.

    Shapes:
        ending_ids: (num_ending,) int32
    """
    num_slots, capacity = state.output_ids.shape
    _step_kernel(state.token_ids.device, torch.float16, "finish_step")(
        (-(-num_slots // 32), 1, 1),
        32,
        state.token_ids,
        state.logprobs,
        state.lengths,
        state.num_output,
        state.output_ids,
        state.output_logprobs,
        capacity,
        state.is_done,
        ending_ids,
        ending_ids.shape[0],
        num_slots,
        dependent=True,
    )


@functools.lru_cache(maxsize=16)
def _embed_kernel(device: torch.device, dtype: torch.dtype, format: WeightFormat) -> Kernel:
    defines = {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype], **format_defines(format)}
    return load_kernels("embed", defines, device)["embed"]


@functools.lru_cache(maxsize=16)
def _step_kernel(device: torch.device, dtype: torch.dtype, name: str) -> Kernel:
    return load_kernels("step", {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype]}, device)[name]
