"""What a model folder holds of each weight: one tensor of floats, or integers and their scales.

The same description plans a file before it is written and says what a file must hold to be read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor, StoredWeight

__all__ = [
    "ROW_SCALE_SUFFIX",
    "SCALE_SUFFIX",
    "ZERO_SUFFIX",
    "PlannedBlock",
    "PlannedTensor",
    "PlannedWeight",
    "assembled",
    "stored_tensors",
]

SCALE_SUFFIX = "_scale"
ZERO_SUFFIX = "_zero"
ROW_SCALE_SUFFIX = "_row_scale"


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor that will be written; ``name`` is as in the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class PlannedWeight:
    """A weight as a file holds it: its name there, its own shape, and what its numbers are.

    ``form`` is a float type or the format of integers, which only matrices have. ``scale_dtype`` is
    float32, or float16 for rows of int8 that came so; the scales of groups are float16 always.
    """

    name: str
    shape: tuple[int, ...]
    form: WeightFormat | torch.dtype
    scale_dtype: torch.dtype = torch.float32

    @property
    def format(self) -> WeightFormat | None:
        """The format of its integers, None for floats."""
        return self.form if isinstance(self.form, WeightFormat) else None

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """What the file holds of it, in file order."""
        form = self.form
        if isinstance(form, torch.dtype):
            return (PlannedTensor(self.name, form, self.shape),)
        rows, columns = self.shape
        if form.group_size is None:
            return (
                PlannedTensor(self.name, torch.int8, self.shape),
                PlannedTensor(self.name + SCALE_SUFFIX, self.scale_dtype, (rows,)),
            )
        groups = (rows, -(-columns // form.group_size))
        data = PlannedTensor(self.name, torch.int8, self.shape)
        if form.bits == 4:
            data = PlannedTensor(self.name, torch.uint8, (rows, -(-columns // 2)))
        scale = PlannedTensor(self.name + SCALE_SUFFIX, torch.float16, groups)
        zero = PlannedTensor(self.name + ZERO_SUFFIX, torch.float16, groups)
        row_scale = PlannedTensor(self.name + ROW_SCALE_SUFFIX, torch.float32, (rows,))
        return (data, scale, zero, row_scale) if form.has_zeros else (data, scale, row_scale)

    @property
    def numel(self) -> int:
        """Weights that it has; scales are none."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)


@dataclass(frozen=True)
class PlannedBlock:
    """Weights that will lie next to each other, in this order; ``name`` is that of the block."""

    name: str
    prefix: str
    weights: tuple[PlannedWeight, ...]

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        """The tensors of all weights, in file order."""
        return tuple(tensor for weight in self.weights for tensor in weight.tensors)


def stored_tensors(name: str, weight: StoredWeight) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a weight under their names in the file, in the order of a plan."""
    if isinstance(weight, Tensor):
        yield name, weight
        return
    yield name, weight.data
    yield name + SCALE_SUFFIX, weight.scale
    if isinstance(weight, GroupedTensor):
        if weight.zero is not None:
            yield name + ZERO_SUFFIX, weight.zero
        yield name + ROW_SCALE_SUFFIX, weight.row_scale


def assembled(weight: PlannedWeight, tensors: Mapping[str, Tensor]) -> StoredWeight:
    """The weight that these tensors of a file make; they have been checked, nothing is copied."""
    format, data = weight.format, tensors[weight.name]
    if format is None:
        return data
    scale = tensors[weight.name + SCALE_SUFFIX]
    if format == INT8:
        return QuantizedTensor(data, scale)
    zero = tensors[weight.name + ZERO_SUFFIX] if format.has_zeros else None
    row_scale = tensors[weight.name + ROW_SCALE_SUFFIX]
    return GroupedTensor(data, scale, row_scale, torch.Size(weight.shape), format, zero)
