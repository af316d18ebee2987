"""Rows of floats as int8 on a processor, several times faster than by torch's operations.

Torch goes over a tile of rows seven times; ``round_rows.c`` reads a row from memory once. Loading a
large model is then bound by reading it.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

import torch
from torch import Tensor

from martlet.kernels.cpu.grouped_linear import SWITCH
from martlet.kernels.cpu.native import NativeError, load_native, openmp

__all__ = ["Rounder", "find_rounder", "native_rounder"]

Rounder = Callable[[Tensor, Tensor, Tensor], None]
"""``rounder(weight, data, scale)`` writes what ``compression.absmax.quantize_rows`` describes.

A row that is not finite gets a scale that is not, and no data.

Shapes:
    weight: (rows, columns) float32, bfloat16 or float16, rows contiguous
    data: (rows, columns) int8, contiguous
    scale: (rows,) float32
"""

_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


class _Rows(ctypes.Structure):
    """``Rows`` of round_rows.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "data", "scale")),
        *((name, ctypes.c_int64) for name in ("stride", "rows", "columns", "type")),
    )


def find_rounder(weight: Tensor) -> Rounder | None:
    """The native code for a matrix; None where torch has to do it.

    The first call compiles it, unless it is in the user's cache, and tries it.
    """
    if not weight.is_cpu or weight.dtype not in _TYPES or weight.stride(1) != 1:
        return None
    return _tried()


@functools.cache
def _tried() -> Rounder | None:
    if os.environ.get(SWITCH, "").strip() == "0":
        return None
    try:
        library, _ = load_native("round_rows")
        rounder = native_rounder(library)
    except NativeError:
        return None
    return rounder if _passes_self_test(rounder) else None


def native_rounder(library: ctypes.CDLL) -> Rounder:
    """The function of a compiled round_rows.c.

    Raises:
        NativeError: the library has none.
    """
    try:
        function = library.martlet_round_rows
    except AttributeError as error:
        raise NativeError("the library has no martlet_round_rows") from error
    function.argtypes = (ctypes.POINTER(_Rows), ctypes.c_void_p, ctypes.c_uint)
    function.restype = None
    parallel = openmp()

    def round_rows(weight: Tensor, data: Tensor, scale: Tensor) -> None:
        rows = _Rows(
            *(weight.data_ptr(), data.data_ptr(), scale.data_ptr()),
            *(weight.stride(0), *weight.shape, _TYPES[weight.dtype]),
        )
        function(ctypes.byref(rows), parallel, torch.get_num_threads())

    return round_rows


def _passes_self_test(rounder: Rounder) -> bool:
    """Whether integers and scales are those of torch's own steps, tails of a row too."""
    weight = torch.linspace(-3, 2, 3 * 1031).sin().view(3, 1031)
    for dtype in _TYPES:
        rows = weight.to(dtype)
        data, scale = torch.empty(rows.shape, dtype=torch.int8), torch.empty(3)
        rounder(rows, data, scale)
        steps = rows.float().abs().amax(dim=1) / 127.0
        if not torch.equal(scale, steps):
            return False
        if not torch.equal(data, (rows.float() / steps[:, None]).round().to(torch.int8)):
            return False
    return True
