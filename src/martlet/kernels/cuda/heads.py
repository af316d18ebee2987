"""Heads of queries and keys in passes: their norms and their turns; ``turn.cu`` says how."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from martlet.kernels.cuda.driver import Kernel, load_kernels
from martlet.kernels.cuda.linear_arguments import ACTIVATION_TYPES
from martlet.kernels.norm import Norm

__all__ = ["can_turn", "turn"]

_THREADS = 256
_VECTOR = 8  # components of a lane
_LARGEST_HEAD = 256
_MOST_ELEMENTS = (1 << 31) - 1  # strides are 32-bit numbers


class _Arguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "norm", "cosine", "sine", "y")),
        *((name, ctypes.c_int) for name in ("batch", "tokens", "heads")),
        *((name, ctypes.c_int) for name in ("batch_stride", "token_stride", "table_stride")),
        *((name, ctypes.c_int) for name in ("num_pairs", "is_interleaved")),
        *((name, ctypes.c_float) for name in ("eps", "offset")),
    )


def can_turn(x: Tensor, norm: Norm | None, cos: Tensor, is_interleaved: bool) -> bool:
    """Whether ``turn`` takes this: heads side by side on a GPU, of which no gradient is asked.

    Shapes:
        x: (batch, num_heads, num_tokens, head_dim)
        cos: (batch or 1, 1, num_tokens, num_pairs)
    """
    if not x.is_cuda or x.dtype not in ACTIVATION_TYPES or x.numel() == 0:
        return False
    if torch.is_grad_enabled() and (x.requires_grad or (norm and norm.weight.requires_grad)):
        return False
    head_dim, num_pairs = x.shape[3], cos.shape[3]
    batch_stride, head_stride, token_stride, stride = x.stride()
    sizes = head_dim | batch_stride | token_stride | (0 if is_interleaved else num_pairs)
    return (
        sizes % _VECTOR == 0
        and num_pairs % (_VECTOR // 2) == 0
        and head_dim <= _LARGEST_HEAD
        and (stride, head_stride) == (1, head_dim)
        and x.data_ptr() % (_VECTOR * x.element_size()) == 0
        and x.shape[0] * batch_stride <= _MOST_ELEMENTS
        and x.numel() <= _MOST_ELEMENTS
        and (norm is None or (norm.bias is None and norm.weight.dtype == x.dtype))
    )


def turn(x: Tensor, norm: Norm | None, cos: Tensor, sin: Tensor, is_interleaved: bool) -> Tensor:
    """Norm and turn in one launch.

    Shapes:
        x: (batch, num_heads, num_tokens, head_dim)
        cos, sin: (batch or 1, 1, num_tokens, num_pairs) float32, contiguous
        return: as x, the heads of a token side by side in memory
    """
    batch, num_heads, num_tokens, head_dim = x.shape
    assert cos.is_contiguous()
    assert sin.is_contiguous()
    assert cos.shape == sin.shape
    assert cos.shape[:3] in ((1, 1, num_tokens), (batch, 1, num_tokens))
    y = torch.empty((batch, num_tokens, num_heads, head_dim), dtype=x.dtype, device=x.device)
    arguments = _Arguments(
        x=x.data_ptr(),
        cosine=cos.data_ptr(),
        sine=sin.data_ptr(),
        y=y.data_ptr(),
        batch=batch,
        tokens=num_tokens,
        heads=num_heads,
        batch_stride=x.stride(0),
        token_stride=x.stride(2),
        table_stride=cos.stride(0) if cos.shape[0] > 1 else 0,
        num_pairs=cos.shape[3],
        is_interleaved=is_interleaved,
    )
    if norm is not None:
        arguments.norm = norm.weight.data_ptr()
        arguments.eps, arguments.offset = norm.eps, norm.offset
    lanes = next(count for count in (4, 8, 16, 32) if count * _VECTOR >= head_dim)
    blocks = -(-batch * num_tokens * num_heads // (_THREADS // lanes))
    _kernel(x.device, x.dtype, head_dim, norm is not None)((blocks, 1, 1), _THREADS, arguments)
    return y.transpose(1, 2)


@functools.lru_cache(maxsize=64)
def _kernel(device: torch.device, dtype: torch.dtype, head_dim: int, has_norm: bool) -> Kernel:
    defines = {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype], "HEAD_DIM": head_dim}
    if has_norm:
        defines["HEAD_NORM"] = 1
    return load_kernels("turn", defines, device)["turn_heads"]
