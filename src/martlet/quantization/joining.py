"""Rows of a matrix of integers that were made apart, as one matrix again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

__all__ = ["joined_rows"]


def joined_rows(
    parts: Sequence[QuantizedTensor | GroupedTensor],
) -> QuantizedTensor | GroupedTensor:
    """The rows of all parts behind each other; the parts have one format and lie on one device."""
    first = parts[0]
    if len(parts) == 1:
        return first
    data = torch.cat([part.data for part in parts])
    scale = torch.cat([part.scale for part in parts])
    if isinstance(first, QuantizedTensor):
        return QuantizedTensor(data, scale)
    grouped = [part for part in parts if isinstance(part, GroupedTensor)]
    zeros = [part.zero for part in grouped if part.zero is not None]
    return GroupedTensor(
        data,
        scale,
        torch.cat([part.row_scale for part in grouped]),
        torch.Size((len(data), first.shape[1])),
        first.format,
        torch.cat(zeros) if zeros else None,
    )
