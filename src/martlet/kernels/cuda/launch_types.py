"""The driver's structures of a launch, bit for bit, and arguments as it reads them."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor

__all__ = [
    "PROGRAMMATIC_STREAM_SERIALIZATION",
    "LaunchAttribute",
    "LaunchConfig",
    "parameters",
]

PROGRAMMATIC_STREAM_SERIALIZATION = 6  # CUlaunchAttributeID

_INT_LIMIT = 1 << 31


class LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute; the value is a union of 64 bytes that is aligned to 8."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("_padding", ctypes.c_char * 4),
        ("value", ctypes.c_int * 16),
    )


class LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid_x", ctypes.c_uint),
        ("grid_y", ctypes.c_uint),
        ("grid_z", ctypes.c_uint),
        ("block_x", ctypes.c_uint),
        ("block_y", ctypes.c_uint),
        ("block_z", ctypes.c_uint),
        ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(LaunchAttribute)),
        ("num_attributes", ctypes.c_uint),
    )


_Value = ctypes._SimpleCData | ctypes.Structure  # type: ignore[type-arg]


def parameters(
    arguments: tuple[Any, ...],
) -> tuple[list[_Value], ctypes.Array[ctypes.c_void_p]]:
    """The values that a kernel reads, and pointers to them; valid while the values live.

    Raises:
        TypeError: An argument is neither tensor, None, int, float nor a ctypes value.
        OverflowError: An int has more than 32 bits.
    """
    values = [_converter(type(argument))(argument) for argument in arguments]  # type: ignore[arg-type]
    return values, (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))


@functools.cache
def _converter(kind: type[Any]) -> Callable[[Any], _Value]:
    # Found once for each type: hundreds of launches a token ask for it.
    if issubclass(kind, ctypes.Structure | ctypes._SimpleCData):
        return lambda value: value
    if issubclass(kind, Tensor):
        return lambda tensor: ctypes.c_void_p(tensor.data_ptr())
    if issubclass(kind, int):
        return _int
    if issubclass(kind, float):
        return ctypes.c_float
    if kind is type(None):
        return lambda _: ctypes.c_void_p()
    raise TypeError(
        f"a kernel takes tensors, None, int, float and ctypes values, not {kind.__name__}"
    )


def _int(number: int) -> ctypes.c_int:
    if not -_INT_LIMIT <= number < _INT_LIMIT:  # ctypes would drop the upper bits
        raise OverflowError(f"{number} has more than 32 bits; pass ctypes.c_int64(...)")
    return ctypes.c_int(number)
