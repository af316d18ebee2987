"""Linear with a weight in groups of 4 or 8 bits on a processor.

Few rows are multiplied by native code (``grouped_linear.c``) from the bytes as a file holds them:
nothing is repacked, so a mapped file is what is computed from. Many rows are bound by arithmetic,
and the weight becomes floats tile by tile for the float matrix multiply. Torch's own operation for
4 bits is not used: it wants a second copy of the weight in an order of its own, rounds the scales
to bfloat16, and took 3 times as long for 1 row.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

import torch
from torch import Tensor

from martlet.kernels import tiled
from martlet.kernels.cpu.native import NativeError, load_native, openmp
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import GroupedTensor

__all__ = [
    "MAX_ROWS_ALONE",
    "MAX_ROWS_NATIVE",
    "SWITCH",
    "Kernel",
    "describe_kernel",
    "find_kernel",
    "grouped_linear",
    "native_kernel",
    "passes_self_test",
]

SWITCH = "MARTLET_NATIVE"
"""The environment variable that keeps native code out where it is 0."""

MAX_ROWS_ALONE = 16
"""Up to so many rows, a row's product does not depend on those beside it."""

# Measured on a 2-core AVX2 machine, one thread: tiles are as fast from about so many rows on.
MAX_ROWS_NATIVE = 64

Kernel = Callable[[Tensor, GroupedTensor], Tensor]
"""``x @ weight.T`` for (rows, in_features) float32, contiguous, in float32."""


def grouped_linear(x: Tensor, weight: GroupedTensor) -> Tensor:
    """``x @ weight.T`` in the dtype of ``x``, computed in float32.

    By native code, up to ``MAX_ROWS_NATIVE`` rows, every 32 inputs of a row become integers under
    a scale of their own, off by at most 2**-16 of the largest of them; their products with the
    integers of the weight are exact. By tiles all is float32.

    Shapes:
        x: (rows, in_features) float32, float16 or bfloat16
        weight: (out_features, in_features)
        return: (rows, out_features)
    """
    num_rows = x.shape[0]
    rows = x.float().contiguous()
    # Native code leaves no gradient; torch says so where tiles are asked for one.
    needs_gradient = torch.is_grad_enabled() and x.requires_grad
    if 0 < num_rows <= MAX_ROWS_NATIVE and not needs_gradient and _is_plain(weight):
        kernel, _ = find_kernel()
        if kernel is not None:
            return kernel(rows, weight).to(x.dtype)
    if 1 < num_rows <= MAX_ROWS_ALONE:
        return _row_by_row(rows, weight).to(x.dtype)
    return tiled.linear(rows, weight).to(x.dtype)


def _row_by_row(x: Tensor, weight: GroupedTensor) -> Tensor:
    """What each row gets alone, with the weight made float once for all of them."""
    out = x.new_empty(x.shape[0], weight.shape[0])
    step = tiled.rows_of_a_tile(x)
    for start in range(0, weight.shape[0], step):
        stop = min(start + step, weight.shape[0])
        dense = weight.rows(start, stop).dequantize(torch.float32).t()
        for row in range(x.shape[0]):
            torch.mm(x[row : row + 1], dense, out=out[row : row + 1, start:stop])
    return out


def _is_plain(weight: GroupedTensor) -> bool:
    tensors = (weight.data, weight.scale, weight.row_scale, weight.zero)
    types = (weight.scale.dtype, weight.row_scale.dtype)
    return types == (torch.float16, torch.float32) and all(
        tensor is None or (tensor.is_cpu and tensor.is_contiguous()) for tensor in tensors
    )


@functools.cache
def find_kernel() -> tuple[Kernel | None, str]:
    """The native kernel, or None, and what it is or why there is none.

    The first call compiles it, unless it is in the user's cache, and tries it.
    """
    if os.environ.get(SWITCH, "").strip() == "0":
        return None, f"switched off by {SWITCH}=0"
    try:
        library, origin = load_native("grouped_linear")
        kernel = native_kernel(library)
    except NativeError as error:
        return None, str(error)
    if not passes_self_test(kernel):
        return None, f"{origin}, but its products are wrong"
    return kernel, origin


def describe_kernel() -> str:
    """One line: what multiplies weights of 4 bits here, and why it is not native code."""
    kernel, reason = find_kernel()
    return f"native, {reason}" if kernel else f"float tiles, slow: {reason}"


class _Product(ctypes.Structure):
    """``Product`` of grouped_linear.c."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("x", "y", "data", "scale", "zero", "row_scale")),
        *(
            (name, ctypes.c_int64)
            for name in ("rows", "in_features", "out_features", "bits", "group_size")
        ),
    )


def native_kernel(library: ctypes.CDLL) -> Kernel:
    """The kernel of a compiled grouped_linear.c.

    Raises:
        NativeError: The library has none.
    """
    try:
        function = library.martlet_grouped_linear
    except AttributeError as error:
        raise NativeError("the library has no martlet_grouped_linear") from error
    function.argtypes = (ctypes.POINTER(_Product), ctypes.c_void_p, ctypes.c_uint)
    function.restype = ctypes.c_int
    parallel = openmp()

    def multiply(x: Tensor, weight: GroupedTensor) -> Tensor:
        out_features, in_features = weight.shape
        y = x.new_empty(x.shape[0], out_features)
        product = _Product(
            *(x.data_ptr(), y.data_ptr(), weight.data.data_ptr(), weight.scale.data_ptr()),
            None if weight.zero is None else weight.zero.data_ptr(),
            weight.row_scale.data_ptr(),
            *(x.shape[0], in_features, out_features),
            *(weight.format.bits, weight.format.group_size),
        )
        if function(ctypes.byref(product), parallel, torch.get_num_threads()) != 0:
            raise MemoryError(f"no memory for the integers of {x.shape[0]} rows of {in_features}")
        return y

    return multiply


_SELF_TEST_FORMATS = (
    WeightFormat(4, 32),
    WeightFormat(4, 64, has_zeros=True),
    WeightFormat(4, 128),
    WeightFormat(8, 32),
    WeightFormat(8, 128),
)


def passes_self_test(kernel: Kernel) -> bool:
    """Whether it multiplies as the weights are defined, tails and rows beside each other too."""
    for format in _SELF_TEST_FORMATS:
        for in_features in (75, 1152):
            weight = _sample_weight(9, in_features, format)
            x = torch.linspace(-2, 3, 5 * in_features).sin().view(5, in_features)
            dense = weight.dequantize(torch.float32)
            limit = 1e-4 * (x.abs() @ dense.abs().t())
            product = kernel(x, weight)
            alone = torch.cat([kernel(row[None].clone(), weight) for row in x])
            if not (((product - x @ dense.t()).abs() <= limit).all() and product.equal(alone)):
                return False
    return True


def _sample_weight(out_features: int, in_features: int, format: WeightFormat) -> GroupedTensor:
    """Every integer there is, under scales of both signs."""
    assert format.group_size is not None
    num_groups = -(-in_features // format.group_size)
    columns = in_features if format.bits == 8 else -(-in_features // 2)
    integers = (torch.arange(out_features * columns) * 37 % 256).view(out_features, columns)
    data = integers.to(torch.uint8)
    scale = torch.linspace(-1, 1.5, out_features * num_groups).view(out_features, -1)
    zero = scale.abs() * 9 if format.has_zeros else None
    return GroupedTensor(
        data.view(torch.int8) if format.bits == 8 else data,
        scale.to(torch.float16),
        torch.full((out_features,), 0.5),
        torch.Size((out_features, in_features)),
        format,
        None if zero is None else zero.to(torch.float16),
    )
