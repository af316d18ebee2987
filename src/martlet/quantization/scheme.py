"""The weight types that layers compute with: floats, int8 with one scale a row, or groups.

Integers come as plain matrices, which files hold and processors compute with, or in tiles, which
GPUs compute with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.nibbles import unpack_nibbles
from martlet.quantization.packing import (
    group_table_numel,
    pack_groups,
    pack_nibble_tiles,
    pack_tiles,
    padded_shape,
    unpack_groups,
    unpack_nibble_tiles,
    unpack_tiles,
)

__all__ = [
    "GroupedTensor",
    "ObservedWeight",
    "QuantizedTensor",
    "StoredWeight",
    "TiledTensor",
    "Weight",
    "tiled",
    "weight_nbytes",
]


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """An int8 matrix whose row r stands for ``data[r] * scale[r]``.

    Shapes:
        data: (out_features, in_features) int8, -127..127
        scale: (out_features,) float32 or float16

    Units:
        scale: weight per integer step.
    """

    data: Tensor
    scale: Tensor

    @property
    def shape(self) -> torch.Size:
        """(out_features, in_features)."""
        return self.data.shape

    @property
    def device(self) -> torch.device:
        """Where both tensors live."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of the integers and the scales together."""
        return self.data.nbytes + self.scale.nbytes

    @property
    def format(self) -> WeightFormat:
        """int8 with one scale a row."""
        return INT8

    def to(self, device: torch.device | str) -> QuantizedTensor:
        """The same weight on another device."""
        return QuantizedTensor(self.data.to(device), self.scale.to(device))

    def rows(self, start: int, stop: int) -> QuantizedTensor:
        """Some rows, as views."""
        return QuantizedTensor(self.data[start:stop], self.scale[start:stop])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight in float, (out_features, in_features); the product is rounded once."""
        return (self.data.to(torch.float32) * self.scale.to(torch.float32)[:, None]).to(dtype)


@dataclass(frozen=True, eq=False)
class GroupedTensor:
    """Integers of 4 or 8 bits with a scale for every ``format.group_size`` inputs of a row.

    ``w[r, k] = (q[r, k] - zero[r, k // group_size]) * scale[r, k // group_size] * row_scale[r]``,
    in float32. Without ``zero`` it is 8 for 4 bits and 0 for 8 bits. The scale of the row keeps
    those of its groups inside the range of float16, however small the weights are.

    Shapes:
        data: (out_features, ceil(in_features / 2)) uint8 for 4 bits, input 2 j in the lower half of
            byte j; (out_features, in_features) int8, -127..127, for 8 bits
            (imports have -128 too)
        scale: (out_features, num_groups) float16, of either sign
        row_scale: (out_features,) float32
        zero: (out_features, num_groups) float16, or None
        shape: (out_features, in_features)
    """

    data: Tensor
    scale: Tensor
    row_scale: Tensor
    shape: torch.Size
    format: WeightFormat
    zero: Tensor | None = None

    def __post_init__(self) -> None:
        rows, columns = self.shape
        group_size = self.format.group_size
        assert group_size is not None
        data_columns = columns if self.format.bits == 8 else -(-columns // 2)
        assert self.data.shape == (rows, data_columns), (self.data.shape, self.shape)
        assert self.scale.shape == (rows, -(-columns // group_size)), self.scale.shape
        assert self.row_scale.shape == (rows,)
        assert (self.zero is not None) == self.format.has_zeros
        assert self.zero is None or self.zero.shape == self.scale.shape

    @property
    def device(self) -> torch.device:
        """Where all its tensors live."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of the integers, scales and zeros together."""
        zeros = 0 if self.zero is None else self.zero.nbytes
        return self.data.nbytes + self.scale.nbytes + self.row_scale.nbytes + zeros

    def to(self, device: torch.device | str) -> GroupedTensor:
        """The same weight on another device."""
        zero = None if self.zero is None else self.zero.to(device)
        return GroupedTensor(
            self.data.to(device),
            self.scale.to(device),
            self.row_scale.to(device),
            self.shape,
            self.format,
            zero,
        )

    def rows(self, start: int, stop: int) -> GroupedTensor:
        """Some rows, as views."""
        zero = None if self.zero is None else self.zero[start:stop]
        data = self.data[start:stop]
        shape = torch.Size((data.shape[0], self.shape[1]))
        scale, row_scale = self.scale[start:stop], self.row_scale[start:stop]
        return GroupedTensor(data, scale, row_scale, shape, self.format, zero)

    def picked(self, rows: Tensor) -> GroupedTensor:
        """The rows that ``rows``, (n,) int64, names, copied."""
        # Row by row; an index in brackets goes number by number, fifty times as slow.
        data, scale, row_scale = (
            tensor.index_select(0, rows) for tensor in (self.data, self.scale, self.row_scale)
        )
        zero = None if self.zero is None else self.zero.index_select(0, rows)
        shape = torch.Size((rows.shape[0], self.shape[1]))
        return GroupedTensor(data, scale, row_scale, shape, self.format, zero)

    def integers(self) -> Tensor:
        """The stored integers: (out_features, in_features), uint8 0..15 or int8 -127..127."""
        if self.format.bits == 8:
            return self.data
        return unpack_nibbles(self.data, self.shape[1])

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight in float, (out_features, in_features), computed in float32, rounded once."""
        group_size = self.format.group_size
        assert group_size is not None
        rows, columns = self.shape
        num_groups = self.scale.shape[1]
        values = self.integers().to(torch.float32)
        if num_groups * group_size != columns:
            values = torch.nn.functional.pad(values, (0, num_groups * group_size - columns))
        values = values.view(rows, num_groups, group_size)
        if self.zero is not None:
            values -= self.zero.to(torch.float32)[:, :, None]
        elif self.format.bits == 4:
            values -= 8.0
        factor = self.scale.to(torch.float32) * self.row_scale[:, None]
        values *= factor[:, :, None]
        return values.view(rows, -1)[:, :columns].to(dtype)


@dataclass(frozen=True, eq=False)
class TiledTensor:
    """A matrix of integers in tiles (see ``packing``), with one float32 scale a row.

    Shapes:
        data: uint8, 512 bytes a tile
        scale: (padded rows,) float32; what stands behind the last row is finite
        shape: (out_features, in_features) without the padding
        groups: float16 scales, and zeros, of groups of inputs (``pack_groups``), or None
    Units:
        scale: weight per integer step, or per step of a group's own scale.
    """

    data: Tensor
    scale: Tensor
    shape: torch.Size
    format: WeightFormat = INT8
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        out_features, in_features = self.shape
        rows, columns = padded_shape(out_features, in_features, self.format.bits)
        assert self.data.shape == (rows * columns * self.format.bits // 8,), self.data.shape
        assert self.scale.shape == (rows,), (self.scale.shape, self.shape)
        if self.format.group_size is None:
            assert self.groups is None
        else:
            assert self.groups is not None
            assert self.groups.shape == (group_table_numel(out_features, in_features, self.format),)

    @property
    def device(self) -> torch.device:
        """Where its tensors live."""
        return self.data.device

    @property
    def nbytes(self) -> int:
        """Bytes of the tiles and the scales together."""
        groups = 0 if self.groups is None else self.groups.nbytes
        return self.data.nbytes + self.scale.nbytes + groups

    def untiled(self) -> QuantizedTensor | GroupedTensor:
        """The same weight as a plain matrix."""
        rows, columns = self.shape
        if self.groups is None:
            return QuantizedTensor(unpack_tiles(self.data, rows, columns), self.scale[:rows])
        scale, zero = unpack_groups(self.groups, rows, columns, self.format)
        unpack = unpack_nibble_tiles if self.format.bits == 4 else unpack_tiles
        data = unpack(self.data, rows, columns)
        return GroupedTensor(data, scale, self.scale[:rows], self.shape, self.format, zero)

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight in float, (out_features, in_features); the product is rounded once."""
        return self.untiled().dequantize(dtype)


def tiled(weight: QuantizedTensor | GroupedTensor) -> TiledTensor:
    """The weight in tiles, on the same device."""
    rows, _ = padded_shape(*weight.shape)
    scale = torch.ones(rows, dtype=torch.float32, device=weight.device)
    if isinstance(weight, QuantizedTensor):
        scale[: weight.shape[0]] = weight.scale
        return TiledTensor(pack_tiles(weight.data), scale, weight.shape)
    scale[: weight.shape[0]] = weight.row_scale
    groups = pack_groups(weight.scale, weight.zero, weight.shape[1], weight.format)
    if weight.format.bits == 4:
        data = pack_nibble_tiles(weight.data, weight.shape[1])
    else:
        data = pack_tiles(weight.data)
    return TiledTensor(data, scale, weight.shape, weight.format, groups)


@dataclass(frozen=True, eq=False)
class ObservedWeight:
    """A matrix that computes as ``weight`` does and shows its inputs, for calibration.

    ``observe`` is called with the input of every product, (rows, in_features), after the norm that
    comes before it. Such a product is computed by torch, never by a fused kernel. Lookups in an
    embedding have no input to show.
    """

    weight: Tensor | QuantizedTensor | GroupedTensor | TiledTensor
    observe: Callable[[Tensor], None]

    @property
    def shape(self) -> torch.Size:
        """(out_features, in_features)."""
        return self.weight.shape

    @property
    def device(self) -> torch.device:
        """Where the weight lives."""
        return self.weight.device

    @property
    def nbytes(self) -> int:
        """Bytes of the weight."""
        return self.weight.nbytes


StoredWeight = Tensor | QuantizedTensor | GroupedTensor
Weight = Tensor | QuantizedTensor | GroupedTensor | TiledTensor | ObservedWeight


def weight_nbytes(weight: Weight) -> int:
    """Bytes that a weight occupies, scales included."""
    return weight.nbytes
