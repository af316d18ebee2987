"""What stands between the products of many rows on a GPU: norms, and what follows a product."""

from __future__ import annotations

import ctypes
import functools

import torch
from torch import Tensor

from martlet.kernels.cuda.driver import Kernel, load_kernels
from martlet.kernels.cuda.few_rows import ACTIVATION_NUMBERS, ACTIVATION_TYPES, Epilogue
from martlet.kernels.norm import Norm

__all__ = ["can_norm", "finish", "norm"]

_THREADS = 256
_VECTOR = 8  # neighbours that a thread computes


class _NormArguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "residual", "y")),
        *((name, ctypes.c_int) for name in ("columns", "x_stride", "is_aligned")),
        ("eps", ctypes.c_float),
        ("offset", ctypes.c_float),
    )


class _FinishArguments(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "bias", "residual", "y")),
        *((name, ctypes.c_int) for name in ("rows", "columns", "x_stride", "residual_stride")),
        *((name, ctypes.c_int) for name in ("y_stride", "activation", "is_gated")),
        *((name, ctypes.c_int) for name in ("is_y_float", "is_aligned")),
    )


def can_norm(x: Tensor, parameters: Norm) -> bool:
    """Whether ``norm`` takes this: on a GPU, all of one float type, at least one row.

    Torch's own operations compute what a gradient is asked of.
    """
    return (
        x.is_cuda
        and x.numel() > 0
        and not _wants_gradient(x, parameters)
        and x.dtype in ACTIVATION_TYPES
        and parameters.weight.dtype == x.dtype
        and (parameters.bias is None or parameters.bias.dtype == x.dtype)
    )


def _wants_gradient(x: Tensor, parameters: Norm) -> bool:
    if not torch.is_grad_enabled():
        return False
    tensors = (x, parameters.weight, parameters.bias)
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


def norm(x: Tensor, parameters: Norm, residual: Tensor | None = None) -> Tensor:
    """What ``ops.norm`` means, plus the residual where there is one, in one launch.

    Shapes:
        x: (..., hidden_size)
        residual: the same, contiguous, dtype of ``x``
        return: the same, contiguous
    """
    weight, bias = parameters.weight, parameters.bias
    assert residual is None or (residual.shape == x.shape and residual.dtype == x.dtype)
    assert residual is None or residual.is_contiguous()
    columns = x.shape[-1]
    rows = x if x.dim() == 2 and x.stride(1) == 1 else x.reshape(-1, columns).contiguous()
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    row_stride = rows.stride(0)
    at = [rows.data_ptr(), weight.data_ptr()]
    at += [0 if tensor is None else tensor.data_ptr() for tensor in (bias, residual)]
    arguments = _NormArguments(
        *at,
        y.data_ptr(),
        columns,
        row_stride,
        _is_aligned(columns | row_stride, at[0] | at[1] | at[2] | at[3]),
        parameters.eps,
        parameters.offset,
    )
    kernel = _kernel("norm", "norm_rows", x.dtype, x.device)
    kernel((rows.shape[0], 1, 1), _THREADS, arguments, dependent=True)
    return y


def finish(
    x: Tensor, y: Tensor, bias: Tensor | None, epilogue: Epilogue, is_gated: bool = False
) -> None:
    """``y = act(x + bias) + residual``, or ``act(first half of x) * (second half)``.

    Shapes:
        x: (rows, columns), twice the columns if it is gated; its rows may be apart, as of the rest
        y: (rows, columns), dtype of ``x`` or float32; may be ``x``
        bias: (columns,)
    """
    rows, columns = y.shape
    residual = epilogue.residual
    assert x.shape == (rows, 2 * columns if is_gated else columns)
    assert x.stride(1) == y.stride(1) == 1
    assert bias is None or (bias.dtype == x.dtype and bias.is_contiguous())
    assert residual is None or (residual.dtype == x.dtype and residual.stride(1) == 1)
    bias_at = 0 if bias is None else bias.data_ptr()
    residual_at, residual_stride = (
        (0, 0) if residual is None else (residual.data_ptr(), residual.stride(0))
    )
    at = x.data_ptr(), bias_at, residual_at, y.data_ptr()
    strides = x.stride(0), residual_stride, y.stride(0)
    arguments = _FinishArguments(
        *at,
        rows,
        columns,
        *strides,
        ACTIVATION_NUMBERS[epilogue.activation],
        is_gated,
        y.dtype == torch.float32,
        _is_aligned(columns | strides[0] | strides[1] | strides[2], at[0] | at[1] | at[2] | at[3]),
    )
    blocks = -(-rows * -(-columns // _VECTOR) // _THREADS)
    _kernel("finish", "finish", x.dtype, x.device)((blocks, 1, 1), _THREADS, arguments)


def _is_aligned(elements: int, addresses: int) -> bool:
    """Whether vectors can be loaded; numbers come joined by "or", as their lowest bits decide."""
    # Eight of 16 bits are one load of 16 bytes, eight float32 are two.
    return elements % _VECTOR == 0 and addresses % 16 == 0


@functools.lru_cache(maxsize=64)
def _kernel(source: str, name: str, dtype: torch.dtype, device: torch.device) -> Kernel:
    return load_kernels(source, {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype]}, device)[name]
