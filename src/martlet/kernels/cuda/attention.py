"""Attention of a decode step over the cache; ``attention.cuh`` says how.

Every length is read on the device, so that one captured step serves all positions of a text.
"""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels.cache_view import CacheView
from martlet.kernels.cuda.driver import Kernel, device_limits, load_kernels
from martlet.kernels.cuda.few_rows import ACTIVATION_TYPES
from martlet.kernels.norm import Norm
from martlet.kernels.turn import Turn
from martlet.quantization.vectors import Int8Vectors, parts_of

__all__ = ["attention", "can_attend"]

_LEAST_STRETCH = 64  # keys of a block: fewer do not pay for joining them
_MAX_STRETCHES = 64
_VECTOR = 8  # components of a lane
_LARGEST_HEAD = 32 * _VECTOR
_NO_WINDOW = (1 << 31) - 1


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
        ("q_norm", ctypes.c_void_p),
        ("k_norm", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("partial", ctypes.c_void_p),
        ("finished", ctypes.c_void_p),
        ("q_stride", ctypes.c_int),
        ("k_stride", ctypes.c_int),
        ("v_stride", ctypes.c_int),
        ("capacity", ctypes.c_int),
        ("least_stretch", ctypes.c_int),
        ("num_distances", ctypes.c_int),
        ("num_heads", ctypes.c_int),
        ("splits", ctypes.c_int),
        ("window", ctypes.c_int),
        ("num_pairs", ctypes.c_int),
        ("is_interleaved", ctypes.c_int),
        ("scale", ctypes.c_float),
        ("turn_factor", ctypes.c_float),
        ("softcap", ctypes.c_float),
        ("norm_eps", ctypes.c_float),
        ("norm_offset", ctypes.c_float),
    )


def can_attend(q: Tensor, head_dim: int, turn: Turn | None) -> bool:
    """Whether ``attention`` takes these: on a GPU, heads and turned halves of whole vectors."""
    if not q.is_cuda or head_dim % _VECTOR or head_dim > _LARGEST_HEAD:
        return False
    if turn is None:
        return True
    pairs_of_a_vector = _VECTOR // 2 if turn.is_interleaved else _VECTOR
    return turn.frequency.shape[0] % pairs_of_a_vector == 0


def attention(  # noqa: PLR0913  (those of ops.step_attention)
    qkv: tuple[Tensor, Tensor | None, Tensor | None],
    cache: CacheView,
    scale: float,
    bias: Tensor | None = None,
    turn: Turn | None = None,
    *,
    norms: tuple[Norm, Norm] | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of one token a slot; new keys and values, where given, go into the cache first.

    Shapes:
        qkv: queries (num_slots, num_heads * head_dim), keys and values
            (num_slots, num_kv_heads * head_dim) or None; rows may be apart
        bias: (num_heads, num_distances) float32 by the distance to the key, the last for all beyond
        norms: of each head's queries and keys before the turn, with weights (head_dim,)
        return: (num_slots, num_heads * head_dim)
    """
    q, k, v = (None if part is None else _in_vectors(part) for part in qkv)
    assert q is not None
    num_slots, num_kv_heads, capacity, head_dim = cache.keys.shape
    assert cache.keys.is_contiguous()
    assert cache.values.is_contiguous()
    num_heads = q.shape[1] // head_dim
    is_int8 = isinstance(cache.keys, Int8Vectors)
    body = _body(q.device, q.dtype, is_int8)
    sharing = num_heads // num_kv_heads  # one key/value head
    splits = -(-sharing // body.most_heads)
    group, num_columns = -(-sharing // splits), num_kv_heads * splits
    stretches = _stretches(q.device, num_columns, min(capacity, window or capacity))
    y = torch.empty((num_slots, num_heads * head_dim), dtype=q.dtype, device=q.device)
    partial, finished = _scratch(
        q.device, num_slots * num_columns * stretches * group * (head_dim + 2)
    )
    assert num_slots * num_columns <= finished.shape[0]
    arguments = _Arguments(
        q=q.data_ptr(),
        lengths=cache.lengths.data_ptr(),
        y=y.data_ptr(),
        partial=partial.data_ptr(),
        finished=finished.data_ptr(),
        q_stride=q.stride(0),
        capacity=capacity,
        least_stretch=_LEAST_STRETCH,
        num_heads=num_heads,
        splits=splits,
        window=_NO_WINDOW if window is None else window,
        scale=scale,
        softcap=softcap or 0.0,
    )
    _add_cache(arguments, cache)
    if k is not None and v is not None:
        arguments.k, arguments.v = k.data_ptr(), v.data_ptr()
        arguments.k_stride, arguments.v_stride = k.stride(0), v.stride(0)
    if bias is not None:
        assert bias.dtype == torch.float32
        arguments.bias, arguments.num_distances = bias.data_ptr(), bias.shape[1]
    if turn is not None:
        _add_turn(arguments, turn, head_dim)
    if norms is not None:
        _add_norms(arguments, norms, q.dtype)
    shape = _Shape(head_dim, group, is_int8, norms is not None, softcap is not None)
    _kernel(q.device, q.dtype, body.name, shape)(
        (num_columns, num_slots, stretches),
        body.warps * 32,
        arguments,
        shared_bytes=4 * body.warps * group * (head_dim + 2),
        dependent=True,
    )
    return y


def _stretches(device: torch.device, num_columns: int, most_keys: int) -> int:
    """Blocks of a key/value head of a sequence: two on each multiprocessor, if there are the keys.

    The number of sequences does not count, so that each has the bits that it has alone.
    """
    wanted = -(-2 * device_limits(device).num_multiprocessors // num_columns)
    return max(1, min(-(-most_keys // _LEAST_STRETCH), wanted, _MAX_STRETCHES))


def _in_vectors(x: Tensor) -> Tensor:
    """The same rows, each beginning where vectors may; those of a fused product do so already."""
    is_aligned = x.stride(1) == 1 and x.stride(0) % _VECTOR == 0 and x.data_ptr() % 16 == 0
    return x if is_aligned else x.clone(memory_format=torch.contiguous_format)


def _add_cache(arguments: _Arguments, cache: CacheView) -> None:
    keys, values = parts_of(cache.keys), parts_of(cache.values)
    arguments.keys, arguments.values = keys[0].data_ptr(), values[0].data_ptr()
    if isinstance(cache.keys, Int8Vectors):
        arguments.key_scales, arguments.value_scales = keys[1].data_ptr(), values[1].data_ptr()


def _add_turn(arguments: _Arguments, turn: Turn, head_dim: int) -> None:
    assert turn.frequency.dtype == torch.float32
    assert 2 * turn.frequency.shape[0] <= head_dim
    arguments.frequency, arguments.num_pairs = turn.frequency.data_ptr(), turn.frequency.shape[0]
    arguments.is_interleaved, arguments.turn_factor = int(turn.is_interleaved), turn.factor


def _add_norms(arguments: _Arguments, norms: tuple[Norm, Norm], dtype: torch.dtype) -> None:
    of_q, of_k = norms
    assert of_q.weight.dtype == of_k.weight.dtype == dtype
    assert of_q.bias is None
    assert of_k.bias is None
    assert (of_q.eps, of_q.offset) == (of_k.eps, of_k.offset)
    arguments.q_norm, arguments.k_norm = of_q.weight.data_ptr(), of_k.weight.data_ptr()
    arguments.norm_eps, arguments.norm_offset = of_q.eps, of_q.offset


@dataclass(frozen=True)
class _Body:
    """A kernel: its name, warps of a block, and the most heads of queries that a block takes."""

    name: str
    warps: int
    most_heads: int


_BY_LANES = _Body("attention", 8, 5)
_ON_MATRIX_UNITS = _Body("attention_units", 4, 8)


@functools.lru_cache(maxsize=64)
def _body(device: torch.device, dtype: torch.dtype, is_int8: bool) -> _Body:
    has_units = dtype != torch.float32 and device_limits(device).capability >= (8, 0)
    return _ON_MATRIX_UNITS if has_units and not is_int8 else _BY_LANES


@dataclass(frozen=True)
class _Shape:
    """What is compiled in beside the type; ``is_int8`` is the form of the cache."""

    head_dim: int
    group: int
    is_int8: bool
    has_norms: bool
    has_softcap: bool

    def defines(self) -> dict[str, int]:
        """The definitions; what is not used is left out."""
        chosen = {
            "CACHE_INT8": self.is_int8,
            "HEAD_NORM": self.has_norms,
            "SOFTCAP": self.has_softcap,
        }
        return {
            "HEAD_DIM": self.head_dim,
            "GROUP": self.group,
            **{name: 1 for name, is_on in chosen.items() if is_on},
        }


@functools.lru_cache(maxsize=64)
def _kernel(device: torch.device, dtype: torch.dtype, name: str, shape: _Shape) -> Kernel:
    defines = {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype], **shape.defines()}
    return load_kernels(name, defines, device)[name]


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
