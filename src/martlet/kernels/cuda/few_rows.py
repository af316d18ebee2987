"""Products of a few rows with tiled weights on a GPU: what a decode step consists of.

``linear.cu`` says how. Here is what it is launched with. More rows than a very few are the business
of ``several_rows``, and one row that of ``one_row``, on cards that these know.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels.cuda import one_row, several_rows
from martlet.kernels.cuda.driver import DeviceLimits, Kernel, device_limits, load_kernels
from martlet.kernels.cuda.linear_arguments import (
    ACTIVATION_NUMBERS,
    ACTIVATION_TYPES,
    MAX_SEGMENTS,
    Arguments,
    Epilogue,
    arguments_of,
    format_defines,
    table_bytes,
)
from martlet.kernels.norm import Norm
from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.packing import TILE_BYTES, TILE_COLUMNS, tile_columns
from martlet.quantization.scheme import TiledTensor

__all__ = [
    "ACTIVATION_NUMBERS",
    "ACTIVATION_TYPES",
    "MAX_ROWS",
    "MAX_SEGMENTS",
    "SEVERAL_FROM_ROWS",
    "Epilogue",
    "LinearVariant",
    "gated_linear",
    "linear",
    "uses_matrix_units",
]

MAX_ROWS = 16
"""More rows than this are the business of ``many_rows``."""

SEVERAL_FROM_ROWS = 2
"""From so many rows on, ``several_rows`` is faster; beyond MAX_ROWS it is never used."""

_PLAIN = Epilogue()
_STATIC_SHARED_BYTES = 1024  # what the driver keeps of a block's shared memory


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
    format: WeightFormat = INT8

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
            **format_defines(self.format),
            **one_row,
        }


# The switch for the int8 path of cards without matrix units, so that any card can test it.
matrix_units_off = False


def linear(
    x: Tensor,
    weights: Sequence[TiledTensor],
    biases: Sequence[Tensor | None],
    norm: Norm | None = None,
    epilogue: Epilogue = _PLAIN,
) -> Tensor:
    """``act(norm(x) @ W.T + bias) + residual`` for up to three weights side by side.

    Shapes:
        x: (rows, in_features), contiguous, at most MAX_ROWS rows, in_features a multiple of 8
        return: (rows, sum of out_features)
    """
    assert 1 <= len(weights) <= MAX_SEGMENTS
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
    arguments = arguments_of(x, segments, norm, epilogue, y)
    limits = device_limits(x.device)
    has_matrix_units = uses_matrix_units(limits.capability, matrix_units_off)
    is_several = rows >= SEVERAL_FROM_ROWS and several_rows.can_run(limits.capability)
    format = segments[0][0].format
    is_one = rows == 1 and one_row.can_run(limits.capability, in_features)
    if is_one and has_matrix_units:
        one_row.launch(x.device, x.dtype, arguments, is_gated, format)
    elif is_several and has_matrix_units:
        several_rows.launch(x, arguments, is_gated, format)
    else:
        _launch_whole(x, arguments, _Kind(is_gated, has_matrix_units, format))
    return y


def _launch_whole(x: Tensor, arguments: Arguments, kind: _Kind) -> None:
    """One kernel from the inputs as they are to the outputs."""
    rows, in_features = x.shape
    limits = device_limits(x.device)
    shape = _shape(arguments.num_chunks, rows, kind, limits)
    tiles = (
        arguments.segment[0].num_tiles
        if kind.is_gated
        else sum(s.num_tiles for s in arguments.segment)
    )
    grid = min(tiles, limits.num_multiprocessors * shape.blocks_per_multiprocessor)
    variant = LinearVariant(
        x.dtype,
        kind.is_gated,
        kind.has_matrix_units,
        arguments.norm,
        arguments.activation,
        shape,
        kind.format,
    )
    kernel = _kernel(x.device, variant)
    row_bytes = in_features * x.element_size()
    residual_bytes = arguments.out_features * x.element_size()
    y_bytes = arguments.out_features * (4 if arguments.is_y_float else x.element_size())
    # Shared memory bounds the rows of one launch; the weights are then read once for each.
    for first in range(0, rows, shape.rows):
        part = Arguments.from_buffer_copy(arguments)
        part.rows = min(shape.rows, rows - first)
        part.x += first * row_bytes
        part.y += first * y_bytes
        if part.residual:
            part.residual += first * residual_bytes
        kernel(
            (grid, 1, 1), shape.warps * 32, part, shared_bytes=shape.shared_bytes, dependent=True
        )


@dataclass(frozen=True)
class _Kind:
    """What a product is, whatever its size."""

    is_gated: bool
    has_matrix_units: bool
    format: WeightFormat


@functools.lru_cache(maxsize=512)
def _shape(num_chunks: int, rows: int, kind: _Kind, limits: DeviceLimits) -> _Shape:
    """The widest launch that this card's shared memory allows."""
    group = rows
    while True:
        for warps, stages in _CONFIGURATIONS:
            shape = _fit((warps, stages), num_chunks, group, kind, limits)
            if shape is not None:
                return shape
        assert group > 1, f"{num_chunks} tiles of inputs do not fit into shared memory"
        group = -(-group // 2)


# Warps of a block and loads in flight of a thread, best first.
_CONFIGURATIONS = ((16, 4), (8, 4), (8, 2))
_MAX_BLOCKS = 2
_BATCH = 2  # of linear.cu


def _fit(
    configuration: tuple[int, int],
    num_chunks: int,
    rows: int,
    kind: _Kind,
    limits: DeviceLimits,
) -> _Shape | None:
    warps, stages = configuration
    matrices = 2 if kind.is_gated else 1
    step_chunks = warps * _BATCH
    chunks = -(-num_chunks // step_chunks) * step_chunks
    halves = tile_columns(kind.format.bits) // TILE_COLUMNS
    # Of 32 inputs: float16 with two sums where there are groups, or int8 with a scale.
    units_bytes = 64 if kind.format.group_size is None else 72
    input_bytes = chunks * halves * rows * (units_bytes if kind.has_matrix_units else 36)
    slot_bytes = TILE_BYTES + 8 * table_bytes(kind.format)
    ring_bytes = warps * stages * matrices * slot_bytes if limits.capability >= (8, 0) else 0
    shared_bytes = ring_bytes + -(-input_bytes // 16) * 16
    shared_bytes += 4 * (2 * matrices * warps * 16 * rows + 2 * MAX_ROWS + 2 * warps)
    blocks = limits.shared_bytes_per_multiprocessor // (shared_bytes + _STATIC_SHARED_BYTES)
    if blocks == 0 or shared_bytes > limits.shared_bytes_per_block_optin:
        return None
    # Few different kernels: the matrix units take 8 rows at the price of one.
    max_rows = -(-rows // 8) * 8 if kind.has_matrix_units else 1 << (rows - 1).bit_length()
    is_ragged = chunks != num_chunks
    return _Shape(warps, stages, rows, max_rows, is_ragged, min(blocks, _MAX_BLOCKS), shared_bytes)


@functools.lru_cache(maxsize=512)
def _kernel(device: torch.device, variant: LinearVariant) -> Kernel:
    return load_kernels("linear", variant.defines(), device)["linear"]
