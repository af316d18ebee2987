"""The driver's structures of a launch, bit for bit, and arguments as it reads them."""

from __future__ import annotations

import ctypes

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
    arguments: tuple[object, ...],
) -> tuple[list[_Value], ctypes.Array[ctypes.c_void_p]]:
    """The values that a kernel reads, and pointers to them; valid while the values live.

    Raises:
        TypeError: An argument is neither tensor, None, int, float nor a ctypes value.
        OverflowError: An int has more than 32 bits.
    """
    values = [_value(argument) for argument in arguments]
    return values, (ctypes.c_void_p * len(values))(*map(ctypes.addressof, values))


def _value(argument: object) -> _Value:
    if isinstance(argument, ctypes.Structure | ctypes._SimpleCData):
        return argument
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, int):
        if not -_INT_LIMIT <= argument < _INT_LIMIT:  # ctypes would drop the upper bits
            raise OverflowError(f"{argument} has more than 32 bits; pass ctypes.c_int64(...)")
        return ctypes.c_int(argument)
    if isinstance(argument, float):
        return ctypes.c_float(argument)
    if argument is None:
        return ctypes.c_void_p()
    raise TypeError(
        f"a kernel takes tensors, None, int, float and ctypes values, not {type(argument).__name__}"
    )
