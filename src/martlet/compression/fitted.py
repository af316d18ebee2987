"""Weights of a block as functions of numbers that can be trained, and back.

A matrix of integers is trained by its scales and zeros, and where a float matrix is known by the
integers too: each has a level, a float that is rounded on the way to the weight while gradients
pass as if it were not. Norms and biases are trained as they are; position tables are not.

All numbers start at what the block computes already, and are in units of their own size, so that
one learning rate suits scales, zeros, norms and biases of any model.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.compression.groups import GroupScales, assemble
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor, StoredWeight

__all__ = ["LEVELS", "FittedBlock", "Numbers"]

LEVELS = "levels"
"""Last part of the names of levels; they have a learning rate of their own."""

Numbers = Mapping[str, Tensor]
"""What is trained of a block by "name of the weight:what", all float32."""

_TILE_ELEMENTS = 1 << 24  # of a matrix that exists as float32 at a time
# A relative change of a scale moves weights some levels away from zero; so far a zero should move.
_ZERO_UNIT = 4.0
# How near a level comes to the edge where it is rounded to another integer.
_INSIDE = 0.49
_LEAST_UNIT = 1e-3  # of a vector of zeros, say a bias that was never trained


class FittedBlock:
    """The weights of a block with the numbers that they are functions of.

    ``latents`` holds float matrices whose integers are trained: the level of each is where the
    float weight lies, but no farther from the integer that the block has than rounding allows, so
    that the block begins as it is. ``frozen`` names weights that are not trained at all.

    Shapes:
        latents: (out_features, in_features), any float type
    """

    def __init__(
        self,
        weights: Mapping[str, StoredWeight],
        latents: Numbers | None = None,
        frozen: Collection[str] = (),
    ) -> None:
        self._weights = dict(weights)
        self._frozen = frozenset(frozen)
        self._with_levels = frozenset(latents or ())
        for name in self._with_levels:
            assert not isinstance(self._weights[name], Tensor), f"{name} has no integers"
        self._latents = dict(latents or {})

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as they are stored."""
        return sum(weight.nbytes for weight in self._weights.values())

    def to(self, device: torch.device) -> FittedBlock:
        """The same on another device; it must have no levels."""
        assert not self._with_levels
        moved = {name: weight.to(device) for name, weight in self._weights.items()}
        return FittedBlock(moved, frozen=self._frozen)

    def start(self, device: torch.device) -> dict[str, Tensor]:
        """The numbers as they are before training; the float matrices are not needed after."""
        numbers: dict[str, Tensor] = {}
        for name, weight in self._weights.items():
            if name in self._frozen:
                continue
            if isinstance(weight, Tensor):
                if weight.dim() == 1:
                    numbers[f"{name}:change"] = torch.zeros(weight.shape, device=device)
                continue
            for what, shape in _number_shapes(weight).items():
                numbers[f"{name}:{what}"] = torch.zeros(shape, device=device)
            if name in self._with_levels:
                latent = self._latents.pop(name).to(device)
                numbers[f"{name}:{LEVELS}"] = _first_levels(latent, weight.to(device))
        return numbers

    def dense(
        self, numbers: Numbers, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """The float weights to compute with; gradients flow to ``numbers``, which are there."""
        return {
            name: _dense(weight.to(device), _of(numbers, name), dtype)
            for name, weight in self._weights.items()
        }

    def keep_inside(self, numbers: Numbers) -> None:
        """Bring levels that a step of training took out of the range of integers back into it."""
        for name in self._with_levels:
            weight = self._weights[name]
            assert not isinstance(weight, Tensor)
            lowest, highest = weight.format.levels
            numbers[f"{name}:{LEVELS}"].clamp_(lowest - _INSIDE, highest + _INSIDE)

    def settled(self, numbers: Numbers) -> dict[str, StoredWeight]:
        """The weights as they are stored, each of the form that it had, on the host."""
        with torch.no_grad():
            return {
                name: _settled(weight, _of(numbers, name)) for name, weight in self._weights.items()
            }


def _of(numbers: Numbers, name: str) -> dict[str, Tensor]:
    """The numbers of one weight by what they are."""
    prefix = f"{name}:"
    return {key[len(prefix) :]: value for key, value in numbers.items() if key.startswith(prefix)}


def _number_shapes(weight: StoredWeight) -> dict[str, tuple[int, ...]]:
    if isinstance(weight, QuantizedTensor):
        return {"scale": (weight.shape[0], 1)}
    assert isinstance(weight, GroupedTensor)
    shape = tuple(weight.scale.shape)
    return {"scale": shape} if weight.zero is None else {"scale": shape, "zero": shape}


def _group_size(weight: QuantizedTensor | GroupedTensor) -> int:
    return weight.format.group_size or weight.shape[1]


def _integers(weight: QuantizedTensor | GroupedTensor) -> Tensor:
    return weight.data if isinstance(weight, QuantizedTensor) else weight.integers()


def _scale(weight: QuantizedTensor | GroupedTensor, change: Tensor | None) -> Tensor:
    """The scales as they will be stored, (rows, groups) float32, without those of the rows."""
    stored = weight.scale.view(weight.shape[0], -1)
    scale = stored.to(torch.float32)
    return scale if change is None else _rounded(scale * (1 + change), stored.dtype)


def _zero(weight: QuantizedTensor | GroupedTensor, change: Tensor | None) -> Tensor | None:
    """The zeros as they will be stored, (rows, groups) float32; None where they are all alike."""
    if isinstance(weight, QuantizedTensor) or weight.zero is None:
        return None
    zero = weight.zero.to(torch.float32)
    return zero if change is None else _rounded(zero + _ZERO_UNIT * change, torch.float16)


def _rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What ``dtype`` holds of ``x``, float32; the gradient passes."""
    return x + (x.to(dtype).to(torch.float32) - x).detach()


def _changed_vector(weight: Tensor, change: Tensor) -> Tensor:
    unit = weight.float().square().mean().sqrt().clamp(min=_LEAST_UNIT)
    return weight.float() + unit * change


def _dense(weight: StoredWeight, numbers: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    if isinstance(weight, Tensor):
        change = numbers.get("change")
        if change is None:
            return weight.to(dtype)
        return _rounded(_changed_vector(weight, change), weight.dtype).to(dtype)
    if not numbers:
        return weight.dequantize(dtype)
    factor = _scale(weight, numbers["scale"])
    if isinstance(weight, GroupedTensor):
        factor = factor * weight.row_scale[:, None]
    zero = _zero(weight, numbers.get("zero"))
    levels = numbers.get(LEVELS)
    arguments = factor, zero, levels, weight, dtype
    return cast(Tensor, _Dequantize.apply(*arguments))  # type: ignore[no-untyped-call]


def _settled(weight: StoredWeight, numbers: dict[str, Tensor]) -> StoredWeight:
    host = torch.device("cpu")
    if not numbers:
        return weight.to(host)
    numbers = {what: number.to(host) for what, number in numbers.items()}
    weight = weight.to(host)
    if isinstance(weight, Tensor):
        return _changed_vector(weight, numbers["change"]).to(weight.dtype)
    integers = _integers(weight)
    if LEVELS in numbers:
        integers = numbers[LEVELS].round().to(integers.dtype)
    scale = _scale(weight, numbers["scale"]).to(weight.scale.dtype)
    if isinstance(weight, QuantizedTensor):
        return QuantizedTensor(integers, scale.view(-1))
    zero = _zero(weight, numbers.get("zero"))
    stored_zero = None if zero is None else zero.to(torch.float16)
    scales = GroupScales(scale, weight.row_scale, stored_zero)
    return assemble(integers, scales, weight.shape[1], weight.format)


def _first_levels(latent: Tensor, weight: QuantizedTensor | GroupedTensor) -> Tensor:
    """Where float weights lie among the levels, moved to the integers that the weight has."""
    assert latent.shape == weight.shape
    factor = _scale(weight, None)
    if isinstance(weight, GroupedTensor):
        factor = factor * weight.row_scale[:, None]
    zero = _zero(weight, None)
    levels = torch.empty(latent.shape, dtype=torch.float32, device=latent.device)
    for start, stop in _tiles(latent.shape):
        values = _grouped(latent[start:stop].to(torch.float32), _group_size(weight))
        step = factor[start:stop, :, None]
        values = values / torch.where(step == 0, torch.inf, step)
        center = weight.format.center if zero is None else zero[start:stop, :, None]
        integers = _integers(weight.rows(start, stop)).to(torch.float32)
        exact = (values + center).view(stop - start, -1)[:, : latent.shape[1]]
        levels[start:stop] = exact.clamp(integers - _INSIDE, integers + _INSIDE)
    return levels


def _tiles(shape: torch.Size) -> list[tuple[int, int]]:
    step = max(1, _TILE_ELEMENTS // max(1, shape[1]))
    return [(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]


def _grouped(x: Tensor, group_size: int) -> Tensor:
    """(rows, in_features) as (rows, num_groups, group_size), the last group filled with zeros."""
    padding = -x.shape[1] % group_size
    return (F.pad(x, (0, padding)) if padding else x).view(x.shape[0], -1, group_size)


class _Dequantize(torch.autograd.Function):
    """``(round(level) - zero) * factor``; keeps no float copy of the matrix for the way back.

    Shapes:
        factor: (rows, groups)
        zero: (rows, groups), or None
        levels: (rows, in_features), or None for the integers that ``weight`` has
        return: (rows, in_features)
    """

    @staticmethod
    def forward(
        ctx: Any,
        factor: Tensor,
        zero: Tensor | None,
        levels: Tensor | None,
        weight: QuantizedTensor | GroupedTensor,
        dtype: torch.dtype,
    ) -> Tensor:
        """The float matrix."""
        ctx.save_for_backward(factor, zero, levels)
        ctx.weight = weight
        out = torch.empty(weight.shape, dtype=dtype, device=factor.device)
        for start, stop in _tiles(weight.shape):
            values = _distances(weight, zero, levels, start, stop) * factor[start:stop, :, None]
            out[start:stop] = values.view(stop - start, -1)[:, : weight.shape[1]]
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of factor, zero and levels."""
        (gradient,) = gradients
        factor, zero, levels = ctx.saved_tensors
        weight = ctx.weight
        of_factor = torch.empty_like(factor)
        of_zero = torch.empty_like(zero) if zero is not None else None
        of_levels = torch.empty_like(levels) if levels is not None else None
        for start, stop in _tiles(weight.shape):
            own = _grouped(gradient[start:stop].to(torch.float32), _group_size(weight))
            distances = _distances(weight, zero, levels, start, stop)
            of_factor[start:stop] = (own * distances).sum(-1)
            if of_zero is not None:
                of_zero[start:stop] = -own.sum(-1) * factor[start:stop]
            if of_levels is not None:
                scaled = own * factor[start:stop, :, None]
                of_levels[start:stop] = scaled.view(stop - start, -1)[:, : weight.shape[1]]
        return of_factor, of_zero, of_levels, None, None


def _distances(
    weight: QuantizedTensor | GroupedTensor,
    zero: Tensor | None,
    levels: Tensor | None,
    start: int,
    stop: int,
) -> Tensor:
    """How far the integers of some rows are from zero, (rows, num_groups, group_size) float32."""
    if levels is None:
        integers = _integers(weight.rows(start, stop)).to(torch.float32)
    else:
        integers = levels[start:stop].round()
    center = weight.format.center if zero is None else zero[start:stop, :, None]
    return _grouped(integers, _group_size(weight)) - center
