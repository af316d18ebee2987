"""Linear with an int8 weight on a processor.

Decoding multiplies one row at a time and is bound by reading the weight, so the integers are
multiplied as they lie. Prefill has many rows and is bound by arithmetic, so there the weight is
turned into floats tile by tile for the float matrix multiply.

The integer kernel is a private operation of torch, which may go or change its meaning in any
release: it is used where it passes a test, and tiles do its work where it does not.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from martlet.kernels import tiled
from martlet.quantization.scheme import QuantizedTensor

__all__ = ["MAX_ROWS_INTEGER", "has_integer_kernel", "int8_linear"]

# Measured on a 2-core AVX2 machine with torch 2.13, one thread: the integer route is 4 times as
# fast as tiles for 1 row, 1.0 to 1.8 times for 8, and 0.7 to 1.3 times for 16 as twice 8.
MAX_ROWS_INTEGER = 16
_ROWS_AT_ONCE = 8

# The integer kernel reads 16 weights at a time, by aligned loads where there is AVX-512, and has
# no code for a remainder: other shapes give wrong sums, or read past the end of the mapped file.
_ALIGNMENT = 16


def int8_linear(x: Tensor, weight: QuantizedTensor) -> Tensor:
    """``x @ weight.T`` in the dtype of ``x``.

    Up to ``MAX_ROWS_INTEGER`` rows, activation and integer product are rounded to bfloat16, each
    by at most 2**-9 of its value; the scale stays float32. That is a quarter of what rounding
    the weight to int8 did. A row is then the same whatever rows are beside it. More rows, weights
    whose rows or address do not divide by 16 or that are not contiguous, and a torch without the
    kernel are computed in float32 throughout.

    Shapes:
        x: (rows, in_features) float32, float16 or bfloat16
        weight: (out_features, in_features)
        return: (rows, out_features)
    """
    is_few = x.shape[0] <= MAX_ROWS_INTEGER
    if not (is_few and _is_safe(weight.data) and has_integer_kernel()):
        return tiled.linear(x.float(), weight).to(x.dtype)
    # The kernel has a fast body for bfloat16 alone (its float32 body is 10 times slower). It
    # would also round the scale to bfloat16, a lasting error of the whole row; so it gets ones.
    ones = _ones(weight.shape[0])
    rows = x.to(torch.bfloat16).contiguous()
    if x.shape[0] <= _ROWS_AT_ONCE:
        product = torch._weight_int8pack_mm(rows, weight.data, ones)
    else:
        parts = torch.split(rows, _ROWS_AT_ONCE)
        product = torch.cat([torch._weight_int8pack_mm(p, weight.data, ones) for p in parts])
    return (product * weight.scale.to(torch.float32)).to(x.dtype)


@functools.lru_cache(maxsize=32)
def _ones(num_rows: int) -> Tensor:
    return torch.ones(num_rows, dtype=torch.bfloat16)


@functools.cache
def has_integer_kernel() -> bool:
    """Whether this torch has the integer kernel and it multiplies as it is used here.

    Rows of the unit matrix must pick columns of the weight; those integers are exact in bfloat16.
    """
    data = (torch.arange(32 * 64) * 37 % 255 - 127).to(torch.int8).view(32, 64)
    rows = torch.eye(MAX_ROWS_INTEGER, 64, dtype=torch.bfloat16)
    ones = torch.ones(32, dtype=torch.bfloat16)
    try:
        product = torch._weight_int8pack_mm(rows, data, ones)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError):
        return False
    return torch.equal(product, data[:, :MAX_ROWS_INTEGER].t().to(torch.bfloat16))


def _is_safe(data: Tensor) -> bool:
    is_aligned = data.shape[1] % _ALIGNMENT == 0 and data.data_ptr() % _ALIGNMENT == 0
    return is_aligned and data.is_contiguous()
