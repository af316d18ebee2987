"""A weight in another format than the one it is stored in, as for a model while it is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from martlet.compression.nearest import quantize_matrix
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor, StoredWeight

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
    pieces = []
    for start in range(0, num_rows, step):
        rows = _floats(weight, start, min(start + step, num_rows), device)
        pieces.append(rows if format is None else quantize_matrix(rows, format, name))
    return _joined(pieces, weight.device)


def _format_of(weight: StoredWeight) -> WeightFormat | None:
    return None if isinstance(weight, Tensor) else weight.format


def _floats(weight: StoredWeight, start: int, stop: int, device: torch.device) -> Tensor:
    if isinstance(weight, Tensor):
        return weight[start:stop].to(device)
    return weight.rows(start, stop).to(device).dequantize()


def _joined(pieces: Sequence[StoredWeight], device: torch.device) -> StoredWeight:
    """Rows behind each other, all of the same form, on a device."""

    def joined(tensors: Iterable[Tensor]) -> Tensor:
        return torch.cat([tensor.to(device) for tensor in tensors])

    floats = [piece for piece in pieces if isinstance(piece, Tensor)]
    if floats:
        return joined(floats)
    rows = [piece for piece in pieces if isinstance(piece, QuantizedTensor)]
    if rows:
        return QuantizedTensor(joined(r.data for r in rows), joined(r.scale for r in rows))
    groups = [piece for piece in pieces if isinstance(piece, GroupedTensor)]
    zeros = [group.zero for group in groups if group.zero is not None]
    data = joined(group.data for group in groups)
    return GroupedTensor(
        data,
        joined(group.scale for group in groups),
        joined(group.row_scale for group in groups),
        torch.Size((data.shape[0], groups[0].shape[1])),
        groups[0].format,
        joined(zeros) if zeros else None,
    )
