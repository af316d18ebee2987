"""A weight in another format than the one it is stored in, as for a model while it is loaded."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from martlet.compression.nearest import quantize_matrix
from martlet.quantization.formats import WeightFormat
from martlet.quantization.joining import joined_rows
from martlet.quantization.scheme import StoredWeight

__all__ = ["in_format", "in_formats"]

_PIECE_ELEMENTS = 4 << 20  # of a matrix that are on the device at a time, as floats


def in_formats(
    weights: Mapping[str, StoredWeight],
    formats: Mapping[str, WeightFormat | None],
    device: torch.device,
) -> dict[str, StoredWeight]:
    """The weights of a block, each in the format that ``formats`` has for its name (None: floats).

    Raises:
        ModelFileError: a weight is infinite or not a number.
    """
    return {name: in_format(w, formats[name], name, device) for name, w in weights.items()}


def in_format(
    weight: StoredWeight, format: WeightFormat | None, name: str, device: torch.device
) -> StoredWeight:
    """The weight in a format, floats for None; the same object where it has that format already.

    Integers become other integers by way of floats, and lose a little on the way. ``device``
    computes, of another device's weight some rows at a time; the result lies where the weight lay.
    No ranges are searched, so that this is fast enough for every time that a model is loaded.

    Raises:
        ModelFileError: a weight is infinite or not a number.
    """
    if _format_of(weight) == format:
        return weight
    if isinstance(weight, Tensor) and weight.device == device:
        assert format is not None, "floats that are to be floats were handed back"
        return quantize_matrix(weight, format, name)
    num_rows, num_columns = weight.shape
    step = max(1, _PIECE_ELEMENTS // max(1, num_columns))
    starts = range(0, num_rows, step)
    pieces = (_floats(weight, start, min(start + step, num_rows), device) for start in starts)
    if format is None:
        return torch.cat([piece.to(weight.device) for piece in pieces])
    return joined_rows([quantize_matrix(piece, format, name).to(weight.device) for piece in pieces])


def _format_of(weight: StoredWeight) -> WeightFormat | None:
    return None if isinstance(weight, Tensor) else weight.format


def _floats(weight: StoredWeight, start: int, stop: int, device: torch.device) -> Tensor:
    if isinstance(weight, Tensor):
        return weight[start:stop].to(device)
    return weight.rows(start, stop).to(device).dequantize()
