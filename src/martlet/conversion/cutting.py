"""Cuts a tensor of ours out of one of a checkpoint, which may keep several in one matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from martlet.errors import ModelFileError
from martlet.models.architecture import CheckpointTensor
from martlet.quantization.scheme import GroupedTensor

__all__ = ["cut", "cut_shape"]


def cut_shape(place: CheckpointTensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of what ``cut`` makes of a tensor of that shape.

    Raises:
        ModelFileError: the rows do not divide as the architecture says.
    """
    if place.is_whole:
        return shape
    period, count = _period_and_count(place, shape)
    return (shape[0] // period * count, *shape[1:])


def cut(place: CheckpointTensor, weight: Tensor | GroupedTensor) -> Tensor | GroupedTensor:
    """The rows that ``place`` says; views where they are neighbours, and copied where not.

    Raises:
        ModelFileError: the rows do not divide as the architecture says.
    """
    if place.is_whole:
        return weight
    period, count = _period_and_count(place, tuple(weight.shape))
    first, num_rows = place.first, weight.shape[0]
    if period == num_rows:
        if isinstance(weight, Tensor):
            return weight[first : first + count]
        return weight.rows(first, first + count)
    if isinstance(weight, Tensor):
        groups = weight.view(num_rows // period, period, *weight.shape[1:])
        return groups[:, first : first + count].flatten(0, 1)
    return weight.picked(torch.arange(num_rows).view(-1, period)[:, first : first + count].ravel())


def _period_and_count(place: CheckpointTensor, shape: tuple[int, ...]) -> tuple[int, int]:
    num_rows = shape[0] if shape else 0
    period = place.period or num_rows
    count = period - place.first if place.count is None else place.count
    if not period or num_rows % period or count < 0 or place.first + count > period:
        raise ModelFileError(
            f"{place.names[0]} has shape {list(shape)}; config.json asks for {count} rows from row "
            f"{place.first} on of every {period}: they do not belong together"
        )
    return period, count
