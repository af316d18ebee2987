"""The tiled layouts: the bytes of a matrix in the order in which matrix units want them.

A tile of int8 is 16 output rows x 32 inputs, 512 consecutive bytes,
``[N/16][K/32][g][c][q][h][e]`` with row = 16 tile + 8 h + g and
input = 32 chunk + 16 q + 4 c + e (g 0-7, c 0-3, q 0-1, h 0-1, e 0-3).
Lane 4 g + c of a warp reads its 16 bytes in one load, and these are its operand of two
``mma.m16n8k16`` steps or of four ``dp4a``, with no shuffle in between. Integers are stored biased,
w + 128, so that a byte becomes a half-precision number by putting it under the exponent of 1024.
Shapes that do not divide are padded with weights of zero.

A tile of 4 bits is 16 output rows x 64 inputs, 512 bytes as well: ``[N/16][K/64][g][c][k][h]`` of
words of 32 bits, with row = 16 tile + 8 h + g. The eight inputs of a word are 64 chunk + 32 k +
16 q + 4 c + e; from the lowest bits on they are (q, e) = 00 02 10 12 01 03 11 13, so that a word
under the mask 0x000f000f, 0x00f000f0, or either after a shift by 8, is a pair of neighbours in the
halves of a register. Padding has the integer 8.

Scales of groups lie ``[N/16][K/unit][g][unit/group][h]``, unit being the larger of a group and the
inputs of a tile; where there are zeros, each stands behind its scale. So a lane's scales for the 16
bytes that it reads are neighbours. Padding has the scale 0 and the zero 8.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.quantization.formats import WeightFormat
from martlet.quantization.nibbles import pack_nibbles, unpack_nibbles

__all__ = [
    "TILE_BYTES",
    "TILE_COLUMNS",
    "TILE_ROWS",
    "group_table_numel",
    "group_unit",
    "pack_groups",
    "pack_nibble_tiles",
    "pack_tiles",
    "padded_shape",
    "tile_columns",
    "tile_rows_of",
    "unpack_groups",
    "unpack_nibble_tiles",
    "unpack_tiles",
]

TILE_ROWS = 16
TILE_COLUMNS = 32  # of int8
TILE_BYTES = 512
BIAS = 128
_NIBBLE_ZERO = 8
# Where in a word of 4-bit weights the input (q, e) stands, by 4 q + e.
_NIBBLE_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


def tile_columns(bits: int) -> int:
    """Inputs of a tile: 32 of int8, 64 of 4 bits."""
    return TILE_BYTES * 8 // bits // TILE_ROWS


def padded_shape(out_features: int, in_features: int, bits: int = 8) -> tuple[int, int]:
    """The shape with both sides rounded up to whole tiles."""
    columns = tile_columns(bits)
    return -(-out_features // TILE_ROWS) * TILE_ROWS, -(-in_features // columns) * columns


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


def pack_nibble_tiles(data: Tensor, in_features: int, out: Tensor | None = None) -> Tensor:
    """The tiled bytes of a matrix of 4-bit integers, on the device that holds it.

    Shapes:
        data: (out_features, ceil(in_features / 2)) uint8, input 2 j in the lower half of byte j
        out: (padded rows * padded columns / 2,) uint8, written if given
        return: the same
    """
    values = unpack_nibbles(data, in_features)
    rows, columns = padded_shape(values.shape[0], in_features, 4)
    padding = (0, columns - in_features, 0, rows - values.shape[0])
    values = F.pad(values, padding, value=_NIBBLE_ZERO)
    # axes: tile, h, g, chunk, k, q, c, e -> tile, chunk, g, c, k, h, (q, e)
    axes = values.view(rows // TILE_ROWS, 2, 8, columns // 64, 2, 2, 4, 4)
    words = axes.permute(0, 3, 2, 6, 4, 1, 5, 7).reshape(-1, 8)
    tiles = pack_nibbles(words[:, _places_to_inputs(words.device)]).view(-1)
    return tiles if out is None else out.copy_(tiles)


def unpack_nibble_tiles(tiles: Tensor, out_features: int, in_features: int) -> Tensor:
    """What ``pack_nibble_tiles`` was given.

    Shapes:
        tiles: (padded rows * padded columns / 2,) uint8
        return: (out_features, ceil(in_features / 2)) uint8
    """
    rows, columns = padded_shape(out_features, in_features, 4)
    words = unpack_nibbles(tiles.view(-1, 4), 8)[:, list(_NIBBLE_PLACES)]
    # axes: tile, chunk, g, c, k, h, q, e -> tile, h, g, chunk, k, q, c, e
    axes = words.reshape(rows // TILE_ROWS, columns // 64, 8, 4, 2, 2, 2, 4)
    values = axes.permute(0, 5, 2, 1, 4, 6, 3, 7).reshape(rows, columns)
    return pack_nibbles(values[:out_features, :in_features])


def _places_to_inputs(device: torch.device) -> Tensor:
    """Which input, 4 q + e, stands at each place of a word."""
    return torch.tensor(_NIBBLE_PLACES, device=device).argsort()


def group_unit(format: WeightFormat) -> int:
    """Inputs whose scales lie together: those of a tile, or of a group where that is larger."""
    assert format.group_size is not None
    return max(format.group_size, tile_columns(format.bits))


def group_table_numel(out_features: int, in_features: int, format: WeightFormat) -> int:
    """Numbers in the table that ``pack_groups`` makes."""
    assert format.group_size is not None
    rows, _ = padded_shape(out_features, in_features, format.bits)
    unit = group_unit(format)
    groups = -(-in_features // unit) * (unit // format.group_size)
    return rows * groups * (2 if format.has_zeros else 1)


def pack_groups(
    scale: Tensor, zero: Tensor | None, in_features: int, format: WeightFormat
) -> Tensor:
    """Scales, and zeros, of groups in the order of the tiles.

    Shapes:
        scale, zero: (out_features, num_groups) float16
        return: (group_table_numel(...),) float16
    """
    assert scale.dtype == torch.float16
    assert format.group_size is not None
    unit = group_unit(format)
    units, share = -(-in_features // unit), unit // format.group_size
    rows, _ = padded_shape(scale.shape[0], in_features, format.bits)
    padding = (0, units * share - scale.shape[1], 0, rows - scale.shape[0])
    table = F.pad(scale, padding)[..., None]
    if zero is not None:
        zeros = F.pad(zero.to(torch.float16), padding, value=_NIBBLE_ZERO)
        table = torch.cat((table, zeros[..., None]), dim=-1)
    # axes: tile, h, g, unit, group, kind -> tile, unit, g, group, h, kind
    axes = table.view(rows // TILE_ROWS, 2, 8, units, share, -1)
    return axes.permute(0, 3, 2, 4, 1, 5).reshape(-1)


def unpack_groups(
    groups: Tensor, out_features: int, in_features: int, format: WeightFormat
) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros that ``pack_groups`` was given, (out_features, num_groups) float16 each."""
    assert format.group_size is not None
    unit = group_unit(format)
    units, share = -(-in_features // unit), unit // format.group_size
    rows, _ = padded_shape(out_features, in_features, format.bits)
    axes = groups.view(rows // TILE_ROWS, units, 8, share, 2, -1)
    table = axes.permute(0, 4, 2, 1, 3, 5).reshape(rows, units * share, -1)
    num_groups = -(-in_features // format.group_size)
    table = table[:out_features, :num_groups]
    zero = table[..., 1].contiguous() if format.has_zeros else None
    return table[..., 0].contiguous(), zero
