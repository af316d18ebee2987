"""Blocks of GGUF files as groups on a processor, three to fifteen times as fast as by torch.

Torch goes over a tile of rows some dozens of times; ``block_rows.c`` reads a block once.
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
from martlet.quantization.block_types import BlockType
from martlet.quantization.scheme import GroupedTensor

__all__ = ["TYPES", "BlockReader", "find_block_reader", "native_block_reader"]

TYPES = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
"""In the order of TYPES in block_rows.c."""

BlockReader = Callable[[Tensor, BlockType, GroupedTensor], int | None]
"""``reader(data, kind, weight)`` fills a weight from the bytes of its rows.

It gives the first row with a factor that is infinite or not a number, None where there is none.

Shapes:
    data: (rows, bytes of a row) uint8, contiguous
    weight: (rows, columns), contiguous, of the format that ``conversion.gguf_blocks`` has for it
"""


class _Rows(ctypes.Structure):
    """``Rows`` of block_rows.c."""

    _fields_ = (
        *(
            (name, ctypes.c_void_p)
            for name in ("blocks", "data", "scale", "zero", "row_scale", "scratch")
        ),
        *((name, ctypes.c_int64) for name in ("row_bytes", "rows", "columns", "type")),
    )


@functools.cache
def find_block_reader() -> BlockReader | None:
    """The native code; None where torch has to do it. Who uses it tries it first.

    The first call compiles it, unless it is in the user's cache.
    """
    if os.environ.get(SWITCH, "").strip() == "0":
        return None
    try:
        library, _ = load_native("block_rows")
        return native_block_reader(library)
    except NativeError:
        return None


def native_block_reader(library: ctypes.CDLL) -> BlockReader:
    """The function of a compiled block_rows.c.

    Raises:
        NativeError: the library has none.
    """
    try:
        function = library.martlet_block_rows
    except AttributeError as error:
        raise NativeError("the library has no martlet_block_rows") from error
    function.argtypes = (ctypes.POINTER(_Rows), ctypes.c_void_p, ctypes.c_uint)
    function.restype = ctypes.c_int64
    parallel = openmp()

    def read(data: Tensor, kind: BlockType, weight: GroupedTensor) -> int | None:
        assert data.is_contiguous() and weight.data.is_contiguous()
        threads = torch.get_num_threads()
        scratch = torch.empty(threads, 3, weight.scale.shape[1])
        rows = _Rows(
            *(data.data_ptr(), weight.data.data_ptr(), weight.scale.data_ptr()),
            None if weight.zero is None else weight.zero.data_ptr(),
            *(weight.row_scale.data_ptr(), scratch.data_ptr()),
            *(data.shape[1], *weight.shape, TYPES.index(kind.name)),
        )
        bad = int(function(ctypes.byref(rows), parallel, threads))
        return None if bad == weight.shape[0] else bad

    return read
