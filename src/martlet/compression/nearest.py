"""A float matrix in any format of integers, each integer the one nearest to its weight."""

from __future__ import annotations

from torch import Tensor

from martlet.compression.absmax import quantize_rows
from martlet.compression.groups import quantize_groups
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

__all__ = ["SEARCHED_RANGES", "quantize_matrix"]

SEARCHED_RANGES = 8
"""Ranges that are tried for each group where there is time for it, as in a conversion."""


def quantize_matrix(
    weight: Tensor, format: WeightFormat, name: str = "weight", *, candidates: int = 1
) -> QuantizedTensor | GroupedTensor:
    """The matrix in that format; ``candidates`` ranges are tried for groups, rows have theirs.

    Shapes:
        weight: (out_features, in_features), any float type

    Raises:
        ModelFileError: a weight is infinite or not a number.
    """
    if format.group_size is None:
        return quantize_rows(weight, name)
    return quantize_groups(weight, format, name, candidates=candidates)
