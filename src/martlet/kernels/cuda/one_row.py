"""Products of one row on a GPU: one text's decode step.

``linear_one.cu`` says how, ``few_rows`` when. Here is what it is launched with.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch

from martlet.kernels.cuda.driver import DeviceLimits, Kernel, device_limits, load_kernels
from martlet.kernels.cuda.linear_arguments import ACTIVATION_TYPES, Arguments, format_defines
from martlet.quantization.formats import WeightFormat
from martlet.quantization.packing import TILE_COLUMNS, group_unit, tile_columns

__all__ = ["OneRowVariant", "can_run", "launch"]

_STATIC_SHARED_BYTES = 1024  # what the driver keeps of a block's shared memory
_MAX_ROWS = 8  # of linear_one.cu
_MOST_INPUTS = 1 << 15  # what shared memory and registers hold of them


@dataclass(frozen=True)
class _Form:
    """Warps of a block, chunks that loads run ahead, and blocks of a multiprocessor."""

    warps: int
    depth: int
    blocks: int


# Measured on an H200 with the products of 8B, 11B, 14B and 32B decoders. Two matrices at a time
# want the registers of two blocks. Loads that run ahead less cost 10 %, so far that registers spill
# 50 %: with groups of 4 bits that is soon. Rows without groups: many inputs want many warps.
_GATED = _Form(16, 4, 1)
_GROUPED_INT4 = _Form(16, 2, 2)
_GROUPED_INT8 = _Form(16, 4, 2)
_DEPTHS = (4, 5)
_MANY_CHUNKS = 256


@dataclass(frozen=True)
class _Shape:
    """How the kernel is compiled and launched; ``chunks`` are those of a warp."""

    form: _Form
    chunks: int
    is_ragged: bool
    grid: int
    shared_bytes: int


@dataclass(frozen=True)
class OneRowVariant:
    """The compile-time choices of linear_one.cu."""

    dtype: torch.dtype
    is_gated: bool
    norm: int
    activation: int
    shape: _Shape
    format: WeightFormat

    def defines(self) -> dict[str, int]:
        """The definitions to compile with."""
        form = self.shape.form
        return {
            "ACTIVATION_TYPE": ACTIVATION_TYPES[self.dtype],
            "GATED": int(self.is_gated),
            "WARPS": form.warps,
            "CHUNKS": self.shape.chunks,
            "DEPTH": form.depth,
            "BLOCKS": form.blocks,
            "RAGGED": int(self.shape.is_ragged),
            "NORM": self.norm,
            "ACTIVATION": self.activation,
            **format_defines(self.format),
        }


def can_run(capability: tuple[int, int], in_features: int) -> bool:
    """Whether a card has the matrix units and registers that this needs, for so many inputs."""
    return capability >= (8, 0) and in_features <= _MOST_INPUTS


def launch(
    device: torch.device,
    dtype: torch.dtype,
    arguments: Arguments,
    is_gated: bool,
    format: WeightFormat,
) -> None:
    """Launch a product of one row that ``few_rows`` describes; it is written to ``arguments.y``."""
    tiles = tuple(s.num_tiles for s in arguments.segment[: arguments.num_segments])
    size = _Size(arguments.in_features, tiles[:1] if is_gated else tiles, is_gated, format)
    shape = _shape(size, device_limits(device))
    variant = OneRowVariant(dtype, is_gated, arguments.norm, arguments.activation, shape, format)
    _kernel(device, variant)(
        (shape.grid, 1, 1),
        shape.form.warps * 32,
        arguments,
        shared_bytes=shape.shared_bytes,
        dependent=True,
    )


@dataclass(frozen=True)
class _Size:
    """A product; ``tiles`` are those of each matrix side by side."""

    in_features: int
    tiles: tuple[int, ...]
    is_gated: bool
    format: WeightFormat


@functools.lru_cache(maxsize=512)
def _shape(size: _Size, limits: DeviceLimits) -> _Shape:
    is_grouped = size.format.group_size is not None
    columns = tile_columns(size.format.bits)
    num_chunks = -(-size.in_features // columns)
    form = _form(size, num_chunks)
    # Loads go round in turns of ``depth``, and no group belongs to two warps.
    unit_chunks = group_unit(size.format) // columns if is_grouped else 1
    turn = math.lcm(form.depth, unit_chunks)
    chunks = -(-num_chunks // (form.warps * turn)) * turn
    matrices = 2 if size.is_gated else 1
    # Of 32 inputs: float16, and two sums where there are groups. Partial sums of two turns.
    shared_bytes = form.warps * chunks * (columns // TILE_COLUMNS) * (72 if is_grouped else 64)
    shared_bytes += 4 * (2 * matrices * form.warps * 16 + 2 * _MAX_ROWS + 2 * form.warps)
    fitting = limits.shared_bytes_per_multiprocessor // (shared_bytes + _STATIC_SHARED_BYTES)
    return _Shape(
        form,
        chunks,
        is_ragged=form.warps * chunks != num_chunks,
        grid=min(sum(size.tiles), limits.num_multiprocessors * max(1, min(form.blocks, fitting))),
        shared_bytes=shared_bytes,
    )


def _form(size: _Size, num_chunks: int) -> _Form:
    if size.is_gated:
        return _GATED
    if size.format.group_size is not None:
        return _GROUPED_INT4 if size.format.bits == 4 else _GROUPED_INT8
    warps = 32 if num_chunks >= _MANY_CHUNKS else 16
    own = -(-num_chunks // warps)  # of a warp, before whole turns are made of them
    # The fewest chunks that are not there; then the deeper.
    depth = 2 if own <= 2 else min(_DEPTHS, key=lambda depth: (-own % depth, -depth))
    return _Form(warps, depth, 1 if warps == 32 else 2)


@functools.lru_cache(maxsize=512)
def _kernel(device: torch.device, variant: OneRowVariant) -> Kernel:
    return load_kernels("linear_one", variant.defines(), device)["linear_one"]
