"""Products of a few rows with tiled int8 weights on a GPU: what a decode step consists of.

``linear.cu`` says how. Here is what it is launched with.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels.cuda.driver import DeviceLimits, Kernel, device_limits, load_kernels
from martlet.kernels.norm import Norm
from martlet.quantization.packing import TILE_COLUMNS, TILE_ROWS
from martlet.quantization.scheme import TiledTensor

__all__ = [
    "ACTIVATION_NUMBERS",
    "ACTIVATION_TYPES",
    "MAX_ROWS",
    "Epilogue",
    "LinearVariant",
    "gated_linear",
    "linear",
    "uses_matrix_units",
]

MAX_ROWS = 16
"""More rows than this are the business of ``many_rows``."""

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
_MAX_SEGMENTS = 3
_STATIC_SHARED_BYTES = 1024  # what the driver keeps of a block's shared memory


class _Segment(ctypes.Structure):
    _fields_ = (
        ("tiles", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("num_tiles", ctypes.c_int),
        ("num_rows", ctypes.c_int),
    )


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("segment", _Segment * _MAX_SEGMENTS),
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
    )


@dataclass(frozen=True)
class Epilogue:
    """What happens to a product before it is written; ``dtype`` None is the input's own."""

    activation: str | None = None
    residual: Tensor | None = None
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class _Shape:
    """How a kernel is compiled and launched, the same for every product of that size.

    ``rows`` go into one launch; the kernel is compiled for ``max_rows`` of them.
    """

    warps: int
    stages: int
    rows: int
    max_rows: int
    is_ragged: bool
    blocks_per_multiprocessor: int
    shared_bytes: int


def uses_matrix_units(capability: tuple[int, int], is_forced_off: bool = False) -> bool:
    """Whether products use float16 matrix units; else int8 activations and ``dp4a``."""
    return capability >= (7, 5) and not is_forced_off


@dataclass(frozen=True)
class LinearVariant:
    """The compile-time choices of linear.cu; one row is compiled in, more are not."""

    dtype: torch.dtype
    is_gated: bool
    has_matrix_units: bool
    norm: int
    activation: int
    shape: _Shape

    def defines(self) -> dict[str, int]:
        """The definitions to compile with."""
        shape = self.shape
        one_row = {"ROWS": 1} if shape.rows == 1 else {}
        return {
            "ACTIVATION_TYPE": ACTIVATION_TYPES[self.dtype],
            "GATED": int(self.is_gated),
            "MATRIX_UNITS": int(self.has_matrix_units),
            "WARPS": shape.warps,
            "STAGES": shape.stages,
            "MAX_ROWS": shape.max_rows,
            "RAGGED": int(shape.is_ragged),
            "NORM": self.norm,
            "ACTIVATION": self.activation,
            **one_row,
        }


# The switch for the int8 path of cards without matrix units, so that any card can test it.
matrix_units_off = False


def linear(
    x: Tensor,
    weights: Sequence[TiledTensor],
    biases: Sequence[Tensor | None],
    norm: Norm | None = None,
    epilogue: Epilogue = Epilogue(),
) -> Tensor:
    """``act(norm(x) @ W.T + bias) + residual`` for up to three weights side by side.

    Shapes:
        x: (rows, in_features), contiguous, at most MAX_ROWS rows, in_features a multiple of 8
        return: (rows, sum of out_features)
    """
    assert 1 <= len(weights) <= _MAX_SEGMENTS
    assert len(weights) == len(biases)
    return _launch(x, list(zip(weights, biases, strict=True)), norm, epilogue, is_gated=False)


def gated_linear(
    x: Tensor, gate: TiledTensor, up: TiledTensor, activation: str, norm: Norm | None = None
) -> Tensor:
    """``act(norm(x) @ gate.T) * (norm(x) @ up.T)``.

    Shapes:
        x: (rows, in_features), as for ``linear``
        return: (rows, out_features)
    """
    segments: list[tuple[TiledTensor, Tensor | None]] = [(gate, None), (up, None)]
    return _launch(x, segments, norm, Epilogue(activation), is_gated=True)


def _launch(
    x: Tensor,
    segments: Sequence[tuple[TiledTensor, Tensor | None]],
    norm: Norm | None,
    epilogue: Epilogue,
    is_gated: bool,
) -> Tensor:
    rows, in_features = x.shape
    assert x.is_contiguous()
    assert 0 < rows <= MAX_ROWS
    assert in_features % 8 == 0
    out_features = segments[0][0].shape[0] if is_gated else sum(w.shape[0] for w, _ in segments)
    y = torch.empty((rows, out_features), dtype=epilogue.dtype or x.dtype, device=x.device)
    limits = device_limits(x.device)
    has_matrix_units = uses_matrix_units(limits.capability, matrix_units_off)
    num_chunks = -(-in_features // TILE_COLUMNS)
    shape = _shape(num_chunks, rows, is_gated, has_matrix_units, limits)
    arguments = _arguments(x, segments, norm, epilogue, y)
    tiles = (
        arguments.segment[0].num_tiles if is_gated else sum(s.num_tiles for s in arguments.segment)
    )
    grid = min(tiles, limits.num_multiprocessors * shape.blocks_per_multiprocessor)
    variant = LinearVariant(
        x.dtype, is_gated, has_matrix_units, arguments.norm, arguments.activation, shape
    )
    kernel = _kernel(x.device, variant)
    row_bytes, y_bytes = in_features * x.element_size(), out_features * y.element_size()
    # Shared memory bounds the rows of one launch; the weights are then read once for each.
    for first in range(0, rows, shape.rows):
        part = _Arguments.from_buffer_copy(arguments)
        part.rows = min(shape.rows, rows - first)
        part.x += first * row_bytes
        part.y += first * y_bytes
        if part.residual:
            part.residual += first * out_features * x.element_size()
        kernel(
            (grid, 1, 1), shape.warps * 32, part, shared_bytes=shape.shared_bytes, dependent=True
        )
    return y


def _arguments(
    x: Tensor,
    segments: Sequence[tuple[TiledTensor, Tensor | None]],
    norm: Norm | None,
    epilogue: Epilogue,
    y: Tensor,
) -> _Arguments:
    rows, in_features = x.shape
    arguments = _Arguments(
        x=x.data_ptr(),
        y=y.data_ptr(),
        num_segments=len(segments),
        rows=rows,
        in_features=in_features,
        num_chunks=-(-in_features // TILE_COLUMNS),
        out_features=y.shape[1],
        activation=ACTIVATION_NUMBERS[epilogue.activation],
        is_y_float=int(y.dtype == torch.float32),
    )
    for place, (weight, bias) in zip(arguments.segment, segments, strict=False):
        assert weight.shape[1] == in_features
        place.tiles, place.scale = weight.data.data_ptr(), weight.scale.data_ptr()
        place.num_rows, place.num_tiles = weight.shape[0], weight.scale.shape[0] // TILE_ROWS
        if bias is not None:
            assert bias.dtype == x.dtype
            place.bias = bias.data_ptr()
    if norm is not None:
        assert norm.weight.dtype == x.dtype
        arguments.norm, arguments.eps = 1, norm.eps
        arguments.norm_weight = norm.weight.data_ptr()
        if norm.bias is not None:
            arguments.norm, arguments.norm_bias = 2, norm.bias.data_ptr()
    if epilogue.residual is not None:
        assert epilogue.residual.shape == y.shape
        assert epilogue.residual.dtype == x.dtype
        assert epilogue.residual.is_contiguous()
        arguments.residual = epilogue.residual.data_ptr()
    return arguments


@functools.lru_cache(maxsize=512)
def _shape(
    num_chunks: int, rows: int, is_gated: bool, has_matrix_units: bool, limits: DeviceLimits
) -> _Shape:
    """The widest launch that this card's shared memory allows."""
    group = rows
    while True:
        for warps, stages in _CONFIGURATIONS:
            shape = _fit((warps, stages), num_chunks, group, is_gated, has_matrix_units, limits)
            if shape is not None:
                return shape
        assert group > 1, f"{num_chunks * TILE_COLUMNS} inputs do not fit into shared memory"
        group = -(-group // 2)


# Warps of a block and loads in flight of a thread, best first.
_CONFIGURATIONS = ((16, 4), (8, 4), (8, 2))
_MAX_BLOCKS = 2
_BATCH = 2  # of linear.cu


def _fit(
    configuration: tuple[int, int],
    num_chunks: int,
    rows: int,
    is_gated: bool,
    has_matrix_units: bool,
    limits: DeviceLimits,
) -> _Shape | None:
    warps, stages = configuration
    matrices = 2 if is_gated else 1
    step_chunks = warps * _BATCH
    chunks = -(-num_chunks // step_chunks) * step_chunks
    input_bytes = chunks * rows * (64 if has_matrix_units else 36)
    ring_bytes = warps * stages * matrices * 512 if limits.capability >= (8, 0) else 0
    shared_bytes = ring_bytes + -(-input_bytes // 16) * 16
    shared_bytes += 4 * (2 * matrices * warps * 16 * rows + 2 * MAX_ROWS + 2 * warps)
    blocks = limits.shared_bytes_per_multiprocessor // (shared_bytes + _STATIC_SHARED_BYTES)
    if blocks == 0 or shared_bytes > limits.shared_bytes_per_block_optin:
        return None
    # Few different kernels: the matrix units take 8 rows at the price of one.
    max_rows = -(-rows // 8) * 8 if has_matrix_units else 1 << (rows - 1).bit_length()
    is_ragged = chunks != num_chunks
    return _Shape(warps, stages, rows, max_rows, is_ragged, min(blocks, _MAX_BLOCKS), shared_bytes)


@functools.lru_cache(maxsize=512)
def _kernel(device: torch.device, variant: LinearVariant) -> Kernel:
    return load_kernels("linear", variant.defines(), device)["linear"]
