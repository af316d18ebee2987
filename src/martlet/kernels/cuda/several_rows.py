"""Products of several rows with tiled weights on a GPU: the decode step of a batch.

``linear_several.cu`` says how, ``few_rows`` when. Here is what it is launched with, after the rows
have become float16 by a launch of their own (``round_rows.cu``) where they are not yet.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels.cuda.driver import DeviceLimits, Kernel, device_limits, load_kernels
from martlet.kernels.cuda.linear_arguments import (
    ACTIVATION_TYPES,
    Arguments,
    format_defines,
    table_bytes,
)
from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.packing import TILE_BYTES, tile_columns

__all__ = ["SeveralVariant", "can_run", "launch"]

_BATCH = 2  # steps that linear_several.cu computes together
_STATIC_SHARED_BYTES = 1024  # what the driver keeps of a block's shared memory
_ROUND_WARPS = 8  # of a block of round_rows.cu
# Warps of a block and loads in flight of a thread for one matrix and for two at a time, best first:
# 48 and 64 KiB in flight. Measured on an H200 with the products of an 11B decoder: for two matrices
# 16 warps are 3 to 7 % ahead of 8, for one matrix all are within 5 %.
_CONFIGURATIONS = {
    1: ((16, 6), (16, 4), (8, 6), (8, 4), (8, 2)),
    2: ((16, 4), (8, 6), (8, 4), (8, 2)),
}


@dataclass(frozen=True)
class _Shape:
    """How the kernel is compiled and launched; ``grid`` blocks, one a multiprocessor."""

    warps: int
    stages: int
    max_rows: int
    is_streamed: bool
    is_ragged: bool
    grid: int
    shared_bytes: int


@dataclass(frozen=True)
class SeveralVariant:
    """The compile-time choices of linear_several.cu."""

    dtype: torch.dtype
    is_gated: bool
    activation: int
    shape: _Shape
    format: WeightFormat = INT8

    def defines(self) -> dict[str, int]:
        """The definitions to compile with."""
        return {
            "ACTIVATION_TYPE": ACTIVATION_TYPES[self.dtype],
            "GATED": int(self.is_gated),
            "STREAMED": int(self.shape.is_streamed),
            "WARPS": self.shape.warps,
            "STAGES": self.shape.stages,
            "MAX_ROWS": self.shape.max_rows,
            "RAGGED": int(self.shape.is_ragged),
            "ACTIVATION": self.activation,
            **format_defines(self.format),
        }


def can_run(capability: tuple[int, int]) -> bool:
    """Whether a card has the matrix units and the asynchronous copies that this needs."""
    return capability >= (8, 0)


def launch(x: Tensor, arguments: Arguments, is_gated: bool, format: WeightFormat) -> None:
    """Launch a product that ``few_rows`` describes; it is written to ``arguments.y``.

    Shapes:
        x: (rows, in_features), what ``arguments.x`` points to, at most 16 rows
    """
    rows, in_features = x.shape
    limits = device_limits(x.device)
    tiles = tuple(s.num_tiles for s in arguments.segment[: arguments.num_segments])
    product_size = _Size(in_features, rows, tiles[:1] if is_gated else tiles, is_gated, format)
    shape = _shape(product_size, limits)
    product = Arguments.from_buffer_copy(arguments)
    scale = None
    if arguments.norm or x.dtype != torch.float16:
        rounded = torch.empty((rows, in_features), dtype=torch.float16, device=x.device)
        scale = torch.empty(rows, dtype=torch.float32, device=x.device)
        kernel = _round_kernel(x.device, x.dtype, arguments.norm)
        kernel((rows, 1, 1), _ROUND_WARPS * 32, arguments, rounded, scale, dependent=True)
        product.x = rounded.data_ptr()
    variant = SeveralVariant(x.dtype, is_gated, arguments.activation, shape, format)
    kernel = _kernel(x.device, variant)
    kernel(
        (shape.grid, 1, 1),
        shape.warps * 32,
        product,
        scale,
        shared_bytes=shape.shared_bytes,
        dependent=True,
    )


@dataclass(frozen=True)
class _Size:
    """A product; ``tiles`` are those of each matrix side by side."""

    in_features: int
    rows: int
    tiles: tuple[int, ...]
    is_gated: bool
    format: WeightFormat


@functools.lru_cache(maxsize=512)
def _shape(size: _Size, limits: DeviceLimits) -> _Shape:
    """The launch that reads inputs least often from the second-level cache, of those that fit."""
    blocks, pairs = limits.num_multiprocessors, sum(-(-count // 2) for count in size.tiles)
    step_inputs = _BATCH * tile_columns(size.format.bits)
    for is_streamed in _forms(blocks, size.tiles, pairs, size.is_gated):
        grid = min(pairs if is_streamed and not size.is_gated else sum(size.tiles), blocks)
        for warps, stages in _CONFIGURATIONS[2 if size.is_gated or is_streamed else 1]:
            shape = _Shape(
                warps,
                stages,
                max_rows=-(-size.rows // 8) * 8,
                is_streamed=is_streamed,
                is_ragged=size.in_features % (warps * step_inputs) != 0,
                grid=grid,
                shared_bytes=_shared_bytes(size, (warps, stages), is_streamed),
            )
            if _holds(limits, shape.shared_bytes):
                return shape
    raise AssertionError(
        f"{limits.shared_bytes_per_block_optin} bytes of shared memory are too few"
    )


def _forms(blocks: int, tiles: tuple[int, ...], pairs: int, is_gated: bool) -> tuple[bool, ...]:
    """Whether inputs are streamed, best first."""
    # Inputs that stay are read once by each block. Where one pair of tiles is all that a block has,
    # streaming reads no more, and leaves room for the block of the next product beside it.
    is_one_pair = not is_gated and pairs <= blocks < sum(tiles)
    return (True,) if is_one_pair else (False, True)


def _shared_bytes(size: _Size, configuration: tuple[int, int], is_streamed: bool) -> int:
    """Ring of weights, inputs, and partial sums of two turns, as linear_several.cu lays them."""
    warps, stages = configuration
    max_rows = -(-size.rows // 8) * 8
    matrices = 2 if size.is_gated or is_streamed else 1
    columns = tile_columns(size.format.bits)
    steps = -(-size.in_features // (warps * _BATCH * columns)) * _BATCH
    input_bytes = warps * (stages if is_streamed else steps) * max_rows * 2 * columns
    partial_bytes = 2 * matrices * warps * 16 * (max_rows + 2) * 4
    chunk_bytes = TILE_BYTES + 8 * table_bytes(size.format)
    return warps * stages * matrices * chunk_bytes + input_bytes + partial_bytes


def _holds(limits: DeviceLimits, shared_bytes: int) -> bool:
    held_bytes = shared_bytes + _STATIC_SHARED_BYTES
    return (
        shared_bytes <= limits.shared_bytes_per_block_optin
        and held_bytes <= limits.shared_bytes_per_multiprocessor
    )


@functools.lru_cache(maxsize=512)
def _kernel(device: torch.device, variant: SeveralVariant) -> Kernel:
    return load_kernels("linear_several", variant.defines(), device)["linear_several"]


@functools.lru_cache(maxsize=64)
def _round_kernel(device: torch.device, dtype: torch.dtype, norm: int) -> Kernel:
    defines = {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype], "WARPS": _ROUND_WARPS, "NORM": norm}
    return load_kernels("round_rows", defines, device)["round_rows"]
