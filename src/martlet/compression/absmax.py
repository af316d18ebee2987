"""Symmetric int8 with one scale a row: the largest magnitude of a row becomes 127.

Weight-only: layers multiply float activations with ``data * scale``. No zero point, no search, no
calibration data, so it can run on any model at any time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from martlet.errors import ModelFileError
from martlet.kernels.cpu.round_rows import find_rounder
from martlet.models.architecture import TensorKind
from martlet.quantization.scheme import QuantizedTensor

__all__ = ["QUANTIZED_KINDS", "quantize_rows"]

QUANTIZED_KINDS: frozenset[TensorKind] = frozenset({"linear", "embedding"})

# Elements of a tile of float32 rows: elsewhere than on a CPU, and there. There it is small enough
# that the passes over it (convert, extremes, divide, round) read the weight from memory once and
# need no memory to speak of, and large enough that starting each pass, and waiting for the other
# threads after it, does not count.
_TILE_ELEMENTS = (8 << 20, 1 << 20)
_NATIVE_FROM_ELEMENTS = 1 << 20


def quantize_rows(weight: Tensor, name: str = "weight") -> QuantizedTensor:
    """The int8 form of a float matrix.

    ``scale = max(abs(row)) / 127`` in float32 and ``data = round(row / scale)``, half to even, so
    every weight is off by at most half a step. A row of zeros (or so small that its scale would
    be zero) gets scale 1 and zeros. Beyond the result, memory is needed for one tile of rows.

    Shapes:
        weight: (out_features, in_features), any float type

    Raises:
        ModelFileError: a weight is infinite or not a number.
    """
    rows, columns = weight.shape
    data = torch.empty((rows, columns), dtype=torch.int8, device=weight.device)
    scale = torch.ones(rows, dtype=torch.float32, device=weight.device)
    if columns:
        # Native code may have to be compiled first, which small matrices do not repay.
        rounder = find_rounder(weight) if weight.numel() >= _NATIVE_FROM_ELEMENTS else None
        (rounder or _round_rows)(weight, data, scale)
    if not bool(torch.isfinite(scale).all()):
        row = int(torch.isfinite(scale).logical_not().nonzero()[0, 0])
        raise ModelFileError(
            f"{name}: row {row} holds an infinite weight or one that is not a number; "
            f"the checkpoint is damaged or overflowed when it was saved"
        )
    return QuantizedTensor(data, scale)


def _round_rows(weight: Tensor, data: Tensor, scale: Tensor) -> None:
    """By torch, on any device, which is not waited for."""
    rows, columns = weight.shape
    tile_rows = max(1, _TILE_ELEMENTS[weight.device.type == "cpu"] // columns)
    for start in range(0, rows, tile_rows):
        stop = min(start + tile_rows, rows)
        # (tile_rows, in_features); a copy even of float32, because it is divided in place
        tile = weight[start:stop].to(torch.float32, copy=True)
        # Two passes: torch.aminmax takes eight times as long as both on a CPU.
        steps = torch.maximum(tile.amax(dim=1), -tile.amin(dim=1)).div_(127.0)
        steps.masked_fill_(steps == 0, 1.0)
        scale[start:stop] = steps
        # What is so small that its scale would be zero is rounded to zero under a scale of 1.
        data[start:stop] = tile.div_(steps[:, None]).round_().clamp_(-127, 127)
