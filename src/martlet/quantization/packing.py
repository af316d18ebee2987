"""The tiled int8 layout: the bytes of a matrix in the order in which matrix units want them.

A tile is 16 output rows x 32 inputs, 512 consecutive bytes, ``[N/16][K/32][g][c][q][h][e]`` with
row = 16 tile + 8 h + g and input = 32 chunk + 16 q + 4 c + e (g 0-7, c 0-3, q 0-1, h 0-1, e 0-3).
Lane 4 g + c of a warp reads its 16 bytes in one load, and these are its operand of two
``mma.m16n8k16`` steps or of four ``dp4a``, with no shuffle in between. Integers are stored biased,
w + 128, so that a byte becomes a half-precision number by putting it under the exponent of 1024.
Shapes that do not divide are padded with weights of zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "TILE_COLUMNS",
    "TILE_ROWS",
    "pack_tiles",
    "padded_shape",
    "tile_rows_of",
    "unpack_tiles",
]

TILE_ROWS = 16
TILE_COLUMNS = 32
BIAS = 128


def padded_shape(out_features: int, in_features: int) -> tuple[int, int]:
    """The shape with both sides rounded up to whole tiles."""
    return -(-out_features // TILE_ROWS) * TILE_ROWS, -(-in_features // TILE_COLUMNS) * TILE_COLUMNS


def pack_tiles(data: Tensor, out: Tensor | None = None) -> Tensor:
    """The tiled bytes of an int8 matrix, on the device that holds it.

    Shapes:
        data: (out_features, in_features) int8
        out: (padded rows * padded columns,) uint8, written if given
        return: the same
    """
    assert data.dtype == torch.int8
    rows, columns = padded_shape(*data.shape)
    # Two's complement plus 128 is the sign bit turned over.
    biased = data.view(torch.uint8) ^ BIAS
    if (rows, columns) != tuple(data.shape):
        padded = torch.full((rows, columns), BIAS, dtype=torch.uint8, device=data.device)
        padded[: data.shape[0], : data.shape[1]] = biased
        biased = padded
    # axes: tile, h, g, chunk, q, c, e -> tile, chunk, g, c, q, h, e
    axes = biased.view(rows // TILE_ROWS, 2, 8, columns // TILE_COLUMNS, 2, 4, 4)
    tiles = axes.permute(0, 3, 2, 5, 4, 1, 6)
    if out is None:
        return tiles.reshape(-1)
    assert out.shape == (rows * columns,)
    out.view(tiles.shape).copy_(tiles)
    return out


def unpack_tiles(tiles: Tensor, out_features: int, in_features: int) -> Tensor:
    """The int8 matrix that ``pack_tiles`` was given.

    Shapes:
        tiles: (padded rows * padded columns,) uint8
        return: (out_features, in_features) int8
    """
    rows, columns = padded_shape(out_features, in_features)
    axes = tiles.view(rows // TILE_ROWS, columns // TILE_COLUMNS, 8, 4, 2, 2, 4)
    biased = axes.permute(0, 5, 2, 1, 4, 3, 6).reshape(rows, columns)
    return (biased ^ BIAS).view(torch.int8)[:out_features, :in_features].contiguous()


def tile_rows_of(tiles: Tensor, rows: Tensor, in_features: int) -> Tensor:
    """Some rows of a tiled matrix as int8, without unpacking the others.

    Shapes:
        tiles: (padded rows * padded columns,) uint8
        rows: (...) int64
        return: (..., in_features) int8
    """
    chunks = -(-in_features // TILE_COLUMNS)
    axes = tiles.view(-1, chunks, 8, 4, 2, 2, 4)  # tile, chunk, g, c, q, h, e
    picked = axes[rows // TILE_ROWS, :, rows % 8, :, :, rows % TILE_ROWS // 8]
    # (..., chunk, c, q, e) -> (..., chunk, q, c, e)
    biased = picked.transpose(-3, -2).reshape(*rows.shape, chunks * TILE_COLUMNS)
    return (biased ^ BIAS).view(torch.int8)[..., :in_features]
