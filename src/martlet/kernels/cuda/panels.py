"""Products of many rows by way of float weights: panels of them, and the float library.

Weights that share their input lie one below the other, as if they were one. A panel is a stretch of
the rows of all of them: one launch makes it, one product takes it. How many bytes it may have is
part of the route (``gemm_route``).
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from martlet.kernels.cuda.driver import Kernel, load_kernels
from martlet.kernels.cuda.elementwise import finish
from martlet.kernels.cuda.few_rows import ACTIVATION_TYPES, Epilogue
from martlet.kernels.cuda.linear_arguments import format_defines
from martlet.quantization.formats import WeightFormat
from martlet.quantization.packing import TILE_BYTES, TILE_ROWS, group_table_numel, tile_columns
from martlet.quantization.scheme import TiledTensor

__all__ = ["Panel", "Piece", "dequantize", "gated_linear", "linear", "panels"]

_MAX_PIECES = 3  # as in dequantize.cu
_WARPS = 8  # of a block of dequantize
_RUN_BYTES = 256  # of a row that a warp of it writes
_PANEL_MULTIPLE = 128
"""Rows of a panel are a multiple of this where they can be: blocks of the product have as many."""


class _Piece(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("tiles", "scale", "groups", "out")),
        *((name, ctypes.c_int) for name in ("rows", "end_tile")),
    )


class _Arguments(ctypes.Structure):
    _fields_ = (
        ("piece", _Piece * _MAX_PIECES),
        *((name, ctypes.c_int) for name in ("num_tiles", "chunks", "columns", "is_aligned")),
    )


class Piece(NamedTuple):
    """``rows`` of a weight from ``first_row`` on, a multiple of 16."""

    weight: int
    first_row: int
    rows: int


class Panel(NamedTuple):
    """Rows ``start`` to ``stop`` of all weights one below the other."""

    start: int
    stop: int
    pieces: tuple[Piece, ...]


@functools.lru_cache(maxsize=256)
def panels(sizes: tuple[int, ...], max_rows: int) -> tuple[Panel, ...]:
    """Panels of at most ``max_rows``, about equally high, that cover weights of so many rows each.

    Any size is possible: where a weight ends between tiles, the next one begins right behind it.
    """
    total = sum(sizes)
    limit = max(TILE_ROWS, max_rows // TILE_ROWS * TILE_ROWS)
    even = -(-total // -(-total // limit))
    even = -(-even // _PANEL_MULTIPLE) * _PANEL_MULTIPLE
    limit = min(limit, even)
    done: list[Panel] = []
    start, pieces, height = 0, list[Piece](), 0
    for weight, size in enumerate(sizes):
        first_row = 0
        while first_row < size:
            room = limit - height
            rows = min(size - first_row, room)
            if rows < size - first_row:
                rows = rows // TILE_ROWS * TILE_ROWS
            if rows == 0 or len(pieces) == _MAX_PIECES:
                done.append(Panel(start, start + height, tuple(pieces)))
                start, pieces, height = start + height, [], 0
                continue
            pieces.append(Piece(weight, first_row, rows))
            first_row, height = first_row + rows, height + rows
    done.append(Panel(start, start + height, tuple(pieces)))
    return tuple(done)


def linear(
    x: Tensor,
    weights: Sequence[TiledTensor],
    biases: Sequence[Tensor | None],
    epilogue: Epilogue,
    panel_bytes: int,
) -> Tensor:
    """What ``many_rows.linear`` means."""
    y = _products(x, weights, panel_bytes)
    has_bias = any(bias is not None for bias in biases)
    is_other_dtype = epilogue.dtype not in (None, x.dtype)
    if not (has_bias or is_other_dtype or epilogue.activation or epilogue.residual is not None):
        return y
    out = torch.empty(y.shape, dtype=epilogue.dtype, device=x.device) if is_other_dtype else y
    if not has_bias or len(weights) == 1:
        finish(y, out, biases[0], epilogue)
        return out
    start = 0
    for weight, bias in zip(weights, biases, strict=True):
        part = slice(start, start + weight.shape[0])
        residual = None if epilogue.residual is None else epilogue.residual[:, part]
        finish(y[:, part], out[:, part], bias, Epilogue(epilogue.activation, residual))
        start = part.stop
    return out


def gated_linear(
    x: Tensor, gate: TiledTensor, up: TiledTensor, activation: str, panel_bytes: int
) -> Tensor:
    """What ``many_rows.gated_linear`` means."""
    both = _products(x, (gate, up), panel_bytes)
    y = torch.empty((x.shape[0], gate.shape[0]), dtype=x.dtype, device=x.device)
    finish(both, y, None, Epilogue(activation), is_gated=True)
    return y


def _products(x: Tensor, weights: Sequence[TiledTensor], panel_bytes: int) -> Tensor:
    """Products with all weights side by side: (tokens, sum of out_features), dtype of ``x``."""
    tokens, in_features = x.shape
    item_bytes = x.element_size()
    sizes = tuple([weight.shape[0] for weight in weights])
    plan, buffer_bytes = _plan(sizes, in_features * item_bytes, panel_bytes)
    y = torch.empty((tokens, plan[-1].stop), dtype=x.dtype, device=x.device)
    buffer = torch.empty(buffer_bytes // item_bytes, dtype=x.dtype, device=x.device)
    matrix_of = _Matrix(in_features, item_bytes, weights[0].format)
    kernel, addresses = _kernel(x.dtype, x.device, matrix_of.format), _addresses(weights)
    for panel in plan:
        grid, arguments = _arguments(addresses, panel.pieces, matrix_of, buffer.data_ptr())
        kernel(grid, _WARPS * 32, arguments)
        # The panel turned over: what a row of it gives is a column of the product.
        matrix = buffer.as_strided((in_features, panel.stop - panel.start), (1, in_features))
        torch.mm(x, matrix, out=y if len(plan) == 1 else y[:, panel.start : panel.stop])
    return y


@functools.lru_cache(maxsize=256)
def _plan(
    sizes: tuple[int, ...], row_bytes: int, panel_bytes: int
) -> tuple[tuple[Panel, ...], int]:
    """Panels, and the bytes of memory that they use in turn."""
    plan = panels(sizes, panel_bytes // row_bytes)
    highest = max(panel.stop - panel.start for panel in plan) * row_bytes
    # A power of two or the limit, so that products of any size share one stretch of memory.
    return plan, max(highest, min(1 << (highest - 1).bit_length(), panel_bytes))


def dequantize(weight: TiledTensor, out: Tensor, first_row: int = 0) -> Tensor:
    """Rows of the weight as floats, the product with the scale rounded once.

    Shapes:
        out: (rows, in_features) float16, bfloat16 or float32, contiguous; what is to be written
        return: the same

    ``first_row`` is a multiple of 16.
    """
    rows, columns = out.shape
    assert out.is_contiguous()
    assert columns == weight.shape[1]
    assert first_row % TILE_ROWS == 0
    assert 0 < rows <= weight.shape[0] - first_row
    pieces = (Piece(0, first_row, rows),)
    matrix = _Matrix(columns, out.element_size(), weight.format)
    grid, arguments = _arguments(_addresses([weight]), pieces, matrix, out.data_ptr())
    _kernel(out.dtype, out.device, weight.format)(grid, _WARPS * 32, arguments)
    return out


class _Addresses(NamedTuple):
    """Where a weight's tiles, scales of rows and scales of groups lie; 0 where there are none."""

    tiles: int
    scale: int
    groups: int


class _Matrix(NamedTuple):
    """What a panel is made of: columns, bytes of a float, and the format of the weights."""

    columns: int
    item_bytes: int
    format: WeightFormat


def _addresses(weights: Sequence[TiledTensor]) -> tuple[_Addresses, ...]:
    return tuple(
        [
            _Addresses(
                w.data.data_ptr(),
                w.scale.data_ptr(),
                0 if w.groups is None else w.groups.data_ptr(),
            )
            for w in weights
        ]
    )


# Weights stay where they are, and so does, in general, the memory of panels: what a launch is made
# from comes again with every pass.
@functools.lru_cache(maxsize=8192)
def _arguments(
    addresses: tuple[_Addresses, ...], pieces: tuple[Piece, ...], matrix: _Matrix, out: int
) -> tuple[tuple[int, int, int], _Arguments]:
    """Grid and arguments of ``dequantize`` for rows one below the other from address ``out`` on."""
    columns, item_bytes, format = matrix
    chunk_inputs = tile_columns(format.bits)
    row_bytes, chunks = columns * item_bytes, -(-columns // chunk_inputs)
    is_aligned = row_bytes % 16 == 0 and out % 16 == 0
    arguments = _Arguments(chunks=chunks, columns=columns, is_aligned=is_aligned)
    num_tiles = 0
    # Places that are not used are never reached: every tile is before the end of the last piece.
    for place, piece in zip(arguments.piece, pieces, strict=False):
        num_tiles += -(-piece.rows // TILE_ROWS)
        weight = addresses[piece.weight]
        place.tiles = weight.tiles + piece.first_row // TILE_ROWS * chunks * TILE_BYTES
        place.scale = weight.scale + 4 * piece.first_row
        if weight.groups:
            place.groups = weight.groups + 2 * group_table_numel(piece.first_row, columns, format)
        place.out, place.rows, place.end_tile = out, piece.rows, num_tiles
        out += piece.rows * row_bytes
    arguments.num_tiles = num_tiles
    runs = -(-chunks * chunk_inputs // (_RUN_BYTES // item_bytes))
    return (-(-num_tiles * runs // _WARPS), 1, 1), arguments


@functools.lru_cache(maxsize=64)
def _kernel(dtype: torch.dtype, device: torch.device, format: WeightFormat) -> Kernel:
    defines = {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype], **format_defines(format)}
    return load_kernels("dequantize", defines, device)["dequantize"]
