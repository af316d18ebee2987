"""What the products of few rows on a GPU are launched with: the structures of linear_inputs.cuh."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels.norm import Norm
from martlet.quantization.formats import WeightFormat
from martlet.quantization.packing import TILE_ROWS, tile_columns
from martlet.quantization.scheme import TiledTensor

__all__ = [
    "ACTIVATION_NUMBERS",
    "ACTIVATION_TYPES",
    "MAX_SEGMENTS",
    "Arguments",
    "Epilogue",
    "Segment",
    "arguments_of",
    "format_defines",
    "table_bytes",
]

ACTIVATION_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
# By number as in linear_inputs.cuh and activations.cuh.
ACTIVATION_NUMBERS = {
    None: 0,
    "gelu_new": 1,
    "gelu_pytorch_tanh": 1,
    "gelu": 2,
    "relu": 3,
    "silu": 4,
}
MAX_SEGMENTS = 3


class Segment(ctypes.Structure):
    """The structure of the same name in linear_inputs.cuh."""

    _fields_ = (
        ("tiles", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("groups", ctypes.c_void_p),
        ("num_tiles", ctypes.c_int),
        ("num_rows", ctypes.c_int),
    )


class Arguments(ctypes.Structure):
    """The structure of the same name in linear_inputs.cuh."""

    _fields_ = (
        ("segment", Segment * MAX_SEGMENTS),
        ("x", ctypes.c_void_p),
        ("norm_weight", ctypes.c_void_p),
        ("norm_bias", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("y", ctypes.c_void_p),
        ("num_segments", ctypes.c_int),
        ("rows", ctypes.c_int),
        ("in_features", ctypes.c_int),
        ("num_chunks", ctypes.c_int),
        ("out_features", ctypes.c_int),
        ("norm", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("is_y_float", ctypes.c_int),
        ("eps", ctypes.c_float),
        ("norm_offset", ctypes.c_float),
    )


@dataclass(frozen=True)
class Epilogue:
    """What happens to a product before it is written; ``dtype`` None is the input's own."""

    activation: str | None = None
    residual: Tensor | None = None
    dtype: torch.dtype | None = None


def format_defines(format: WeightFormat) -> dict[str, int]:
    """What a kernel is compiled with for weights of a format."""
    return {
        "BITS": format.bits,
        "GROUP": format.group_size or 0,
        "ZEROS": int(format.has_zeros),
    }


def table_bytes(format: WeightFormat) -> int:
    """Bytes of the scales, and zeros, that a lane needs for its 16 bytes of weights."""
    if format.group_size is None:
        return 0
    groups = max(1, tile_columns(format.bits) // format.group_size)
    return groups * 4 * (2 if format.has_zeros else 1)


def arguments_of(
    x: Tensor,
    segments: Sequence[tuple[TiledTensor, Tensor | None]],
    norm: Norm | None,
    epilogue: Epilogue,
    y: Tensor,
) -> Arguments:
    """The pointers and sizes of a product; the tensors must live until it is launched."""
    rows, in_features = x.shape
    arguments = Arguments(
        x=x.data_ptr(),
        y=y.data_ptr(),
        num_segments=len(segments),
        rows=rows,
        in_features=in_features,
        num_chunks=-(-in_features // tile_columns(segments[0][0].format.bits)),
        out_features=y.shape[1],
        activation=ACTIVATION_NUMBERS[epilogue.activation],
        is_y_float=int(y.dtype == torch.float32),
    )
    for place, (weight, bias) in zip(arguments.segment, segments, strict=False):
        assert weight.shape[1] == in_features
        assert weight.format == segments[0][0].format
        if weight.groups is not None:
            place.groups = weight.groups.data_ptr()
        place.tiles, place.scale = weight.data.data_ptr(), weight.scale.data_ptr()
        place.num_rows, place.num_tiles = weight.shape[0], weight.scale.shape[0] // TILE_ROWS
        if bias is not None:
            assert bias.dtype == x.dtype
            place.bias = bias.data_ptr()
    if norm is not None:
        assert norm.weight.dtype == x.dtype
        arguments.norm, arguments.eps, arguments.norm_offset = 1, norm.eps, norm.offset
        arguments.norm_weight = norm.weight.data_ptr()
        if norm.bias is not None:
            arguments.norm, arguments.norm_bias = 2, norm.bias.data_ptr()
    if epilogue.residual is not None:
        assert epilogue.residual.shape == y.shape
        assert epilogue.residual.dtype == x.dtype
        assert epilogue.residual.is_contiguous()
        arguments.residual = epilogue.residual.data_ptr()
    return arguments
