"""Integers with a scale for every group of inputs, rounded to nearest, ranges searched.

The largest weight of a group need not be representable: a smaller step makes all the others more
exact. Which step costs least is found by trying some, then by least squares between the weights and
the integers that they became.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.errors import ModelFileError
from martlet.quantization.formats import WeightFormat
from martlet.quantization.nibbles import pack_nibbles
from martlet.quantization.scheme import GroupedTensor

__all__ = ["GroupScales", "assemble", "nearest", "quantize_groups", "search_scales"]

# Elements of the rows that are searched at a time: the passes over them stay in the caches.
_TILE_ELEMENTS = 1 << 20
_REFINEMENTS = 2


@dataclass(frozen=True, eq=False)
class GroupScales:
    """The scales of a matrix, exactly as they will be stored, before its integers are chosen.

    Shapes:
        scale, zero: (out_features, num_groups) float16; zero None where the format has none
        row_scale: (out_features,) float32, powers of two
    """

    scale: Tensor
    row_scale: Tensor
    zero: Tensor | None

    def steps(self) -> Tensor:
        """Weight per integer step, (out_features, num_groups) float32."""
        return self.scale.to(torch.float32) * self.row_scale[:, None]

    def centers(self, format: WeightFormat) -> Tensor:
        """The integers that stand for zero, (out_features, num_groups) float32."""
        if self.zero is not None:
            return self.zero.to(torch.float32)
        return torch.full_like(self.scale, format.center, dtype=torch.float32)


def quantize_groups(
    weight: Tensor,
    format: WeightFormat,
    name: str = "weight",
    *,
    candidates: int = 1,
    importance: Tensor | None = None,
) -> GroupedTensor:
    """The grouped form of a float matrix, every integer the one nearest to its weight.

    Shapes:
        weight: (out_features, in_features), any float type
        importance: (in_features,) how much a squared error in that input counts; None is one each

    ``candidates`` ranges are tried for each group (see ``search_scales``).

    Raises:
        ModelFileError: a weight is infinite or not a number.
    """
    parts = []
    for tile in _tiles(weight, name):
        scales = _searched(tile, format, candidates, importance)
        parts.append((scales, nearest(tile, scales, format)))
    joined = _joined([scales for scales, _ in parts])
    integers = torch.cat([integers for _, integers in parts])
    return assemble(integers, joined, weight.shape[1], format)


def assemble(
    integers: Tensor, scales: GroupScales, in_features: int, format: WeightFormat
) -> GroupedTensor:
    """The stored form of integers that were chosen for these scales.

    Shapes:
        integers: (out_features, in_features) uint8 for 4 bits, int8 for 8 bits
    """
    data = pack_nibbles(integers) if format.bits == 4 else integers
    shape = torch.Size((integers.shape[0], in_features))
    return GroupedTensor(data, scales.scale, scales.row_scale, shape, format, scales.zero)


def search_scales(
    weight: Tensor,
    format: WeightFormat,
    name: str = "weight",
    *,
    candidates: int = 1,
    importance: Tensor | None = None,
) -> GroupScales:
    """Scales, and zeros, with the least squared error of all that are tried for each group.

    ``candidates`` ranges from the full one down to half of it; the best is then refined by least
    squares where that helps.

    Shapes:
        weight: (out_features, in_features) float32
        importance: (in_features,) weights of the squared errors

    Raises:
        ModelFileError: a weight is infinite or not a number.
    """
    tiles = _tiles(weight, name)
    return _joined([_searched(tile, format, candidates, importance) for tile in tiles])


def _tiles(weight: Tensor, name: str) -> Iterator[Tensor]:
    """A few rows at a time, in float32; ModelFileError where one is not finite."""
    step = max(1, _TILE_ELEMENTS // max(1, weight.shape[1]))
    for start in range(0, weight.shape[0], step):
        tile = weight[start : start + step].to(torch.float32)
        # The sum is finite for all but the strangest matrices, and needs no memory.
        if not bool(torch.isfinite(tile.sum())) and not bool(torch.isfinite(tile).all()):
            row = start + int(torch.isfinite(tile).all(-1).logical_not().nonzero()[0, 0])
            raise ModelFileError(
                f"{name}: row {row} holds an infinite weight or one that is not a number; "
                f"the checkpoint is damaged or overflowed when it was saved"
            )
        yield tile


def _searched(
    weight: Tensor, format: WeightFormat, candidates: int, importance: Tensor | None
) -> GroupScales:
    values, counts = _in_groups(weight, format, importance)
    best = _Search(values, counts, format)
    for index in range(candidates):
        share = 1.0 - 0.5 * index / candidates
        for scale, zero in _ranges(values, format, share):
            best.offer(scale, zero)
    for _ in range(_REFINEMENTS):
        best.offer(*best.refined())
    return best.stored()


def _joined(parts: list[GroupScales]) -> GroupScales:
    zeros = [scales.zero for scales in parts if scales.zero is not None]
    return GroupScales(
        torch.cat([scales.scale for scales in parts]),
        torch.cat([scales.row_scale for scales in parts]),
        torch.cat(zeros) if zeros else None,
    )


def _in_groups(
    weight: Tensor, format: WeightFormat, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(out_features, num_groups, group_size) weights, and how much each input counts."""
    group_size = format.group_size
    assert group_size is not None
    rows, columns = weight.shape
    counts = torch.ones(columns, device=weight.device) if importance is None else importance
    padding = -columns % group_size
    if padding:
        weight = F.pad(weight, (0, padding))
        counts = F.pad(counts, (0, padding))
    return weight.view(rows, -1, group_size), counts.to(torch.float32).view(1, -1, group_size)


def _ranges(values: Tensor, format: WeightFormat, share: float) -> list[tuple[Tensor, Tensor]]:
    """Pairs of (scale, zero), each (rows, num_groups), that cover ``share`` of the range."""
    high, low = values.amax(-1), values.amin(-1)
    if format.has_zeros:
        high, low = high.clamp(min=0) * share, low.clamp(max=0) * share
        scale = (high - low) / 15
        return [(scale, -low / torch.where(scale == 0, 1.0, scale))]
    if format.bits == 8:
        return [(torch.maximum(high, -low) * (share / 127), torch.zeros_like(high))]
    # -8 has no opposite: the weight of largest magnitude takes it, by a negative scale if need be.
    extreme = torch.where(high > -low, high, low)
    eight = torch.full_like(high, 8.0)
    return [(extreme * (share / -8), eight), (extreme.abs() * (share / 7), eight)]


class _Search:
    """The best scale and zero of each group so far, as they will be stored."""

    def __init__(self, values: Tensor, counts: Tensor, format: WeightFormat) -> None:
        self._values, self._counts, self._format = values, counts, format
        largest = values.abs().amax((-1, -2))  # (rows,)
        # The scale of a row: a power of two that brings those of its groups to about 1.
        steps = 127.0 if format.bits == 8 else 8.0
        exponent = torch.log2(torch.where(largest > 0, largest / steps, 1.0)).ceil()
        self._row_scale = torch.exp2(exponent.clamp(-120, 120))
        self._error = torch.full(values.shape[:2], torch.inf, device=values.device)
        self._scale = torch.zeros(values.shape[:2], device=values.device)
        self._zero = torch.full_like(self._scale, format.center)

    def offer(self, scale: Tensor, zero: Tensor) -> None:
        """Take scale and zero where their error is smaller."""
        relative = (scale / self._row_scale[:, None]).to(torch.float16).to(torch.float32)
        zero = zero.to(torch.float16).to(torch.float32)
        step = relative * self._row_scale[:, None]
        difference = self._rounded(step, zero).sub_(zero[..., None]).mul_(step[..., None])
        difference.sub_(self._values)
        error = difference.square_().mul_(self._counts).sum(-1)
        is_better = error < self._error
        self._error = torch.where(is_better, error, self._error)
        self._scale = torch.where(is_better, relative, self._scale)
        self._zero = torch.where(is_better, zero, self._zero)

    def refined(self) -> tuple[Tensor, Tensor]:
        """The scale (and zero) of least squares for the integers that the best one gives."""
        step = self._scale * self._row_scale[:, None]
        levels = self._rounded(step, self._zero)
        counts = self._counts.clamp(min=1e-30)
        if not self._format.has_zeros:
            levels.sub_(self._zero[..., None])
            above = (counts * levels * self._values).sum(-1)
            below = (counts * levels.square()).sum(-1)
            return torch.where(below > 0, above / below.clamp(min=1e-30), step), self._zero
        total = counts.sum(-1)
        mean_level = (counts * levels).sum(-1) / total
        mean_value = (counts * self._values).sum(-1) / total
        levels.sub_(mean_level[..., None])
        below = (counts * levels.square()).sum(-1)
        slope = (counts * levels * self._values).sum(-1) / below.clamp(min=1e-30)
        is_usable = (below > 0) & (slope > 0)
        scale = torch.where(is_usable, slope, step)
        zero = mean_level - mean_value / torch.where(scale == 0, 1.0, scale)
        return scale, torch.where(is_usable, zero, self._zero)

    def stored(self) -> GroupScales:
        """The best of all that were offered."""
        zero = self._zero.to(torch.float16) if self._format.has_zeros else None
        return GroupScales(self._scale.to(torch.float16), self._row_scale, zero)

    def _rounded(self, step: Tensor, zero: Tensor) -> Tensor:
        return _levels(self._values, step[..., None], zero[..., None], self._format)


def _levels(values: Tensor, step: Tensor, zero: Tensor, format: WeightFormat) -> Tensor:
    """The integers nearest to the weights, as floats; where the step is zero, those of zero."""
    levels = values / torch.where(step == 0, torch.inf, step) + zero
    return levels.round_().clamp_(*format.levels)


def nearest(weight: Tensor, scales: GroupScales, format: WeightFormat) -> Tensor:
    """The integers of a matrix under scales that are settled."""
    values, _ = _in_groups(weight, format, None)
    zero = scales.centers(format)[..., None]
    levels = _levels(values, scales.steps()[..., None], zero, format)
    integers = levels.to(torch.uint8 if format.bits == 4 else torch.int8)
    return integers.view(weight.shape[0], -1)[:, : weight.shape[1]]
