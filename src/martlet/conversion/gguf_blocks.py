"""The numbers of GGUF files as weights in our formats.

    F32 F16 BF16 F64   floats, as they are
    Q8_0 Q5_0          int8-g32, the same values: integers and scales move
    Q4_0               int4-g32, the same values
    Q4_1 Q4_K          int4-g32-asym: the integers stay; zeros, and for Q4_K scales, become float16
    the others         int8-g32, rounded to nearest

A row is worked on with some others, so that little memory is needed beside the result, by as many
threads as torch has. Native code does the same steps several times faster, where there is a
compiler; what is written here says what it has to give, number for number.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

from martlet.conversion.gguf_values import PARTS, fifth_bits, halves, scales_and_minima, values
from martlet.device.threads import cpu_threads
from martlet.errors import ModelFileError
from martlet.kernels.cpu.block_rows import BlockReader, find_block_reader
from martlet.quantization.block_types import BlockType
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import GroupedTensor

__all__ = [
    "FLOATS",
    "FORMATS",
    "fill_by_native_code",
    "fill_by_torch",
    "grouped_weight",
    "new_weight",
    "supported_types",
]

FLOATS: Mapping[str, torch.dtype] = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
}
_INT8 = WeightFormat(8, 32)
_INT4 = WeightFormat(4, 32)
_ASYMMETRIC = WeightFormat(4, 32, has_zeros=True)
FORMATS: Mapping[str, WeightFormat] = {
    "Q8_0": _INT8,
    "Q5_0": _INT8,
    "Q4_0": _INT4,
    "Q4_1": _ASYMMETRIC,
    "Q4_K": _ASYMMETRIC,
    **dict.fromkeys(PARTS, _INT8),
}
"""The format that each type of blocks takes."""

_TILE_ELEMENTS = 1 << 20  # of the rows that are worked on at a time: they stay in the caches
_NATIVE_FROM_ELEMENTS = 1 << 20
# Beyond this many steps a number that stands for zero does not fit into float16. The numbers of
# such a group are nearly all the same, and the lowest stands for all of them.
_LARGEST_ZERO = 60_000.0
_LARGEST_HALF = 65504.0


class _Groups(NamedTuple):
    """Some rows: the integers as stored, (rows, ...), and what their groups stand for.

    Shapes:
        step, lowest: (rows, groups) float32; lowest is what the integer 0 stands for, where the
            format has zeros
    """

    data: Tensor
    step: Tensor
    lowest: Tensor | None = None


def supported_types() -> str:
    """All types that can be read, for messages."""
    return ", ".join((*FLOATS, *sorted(FORMATS)))


def grouped_weight(data: Tensor, kind: BlockType, name: str) -> GroupedTensor:
    """The matrix whose rows are these bytes, in the format that ``FORMATS`` has for the type.

    Shapes:
        data: (out_features, bytes of a row) uint8

    Raises:
        ModelFileError: a scale is infinite or not a number.
    """
    out_features, row_bytes = data.shape
    shape = torch.Size((out_features, row_bytes // kind.nbytes * kind.elements))
    weight = new_weight(shape, kind)
    # Native code may have to be compiled first, which small matrices do not repay.
    is_large = shape.numel() >= _NATIVE_FROM_ELEMENTS
    if not (is_large and fill_by_native_code(weight, data, kind, name)):
        fill_by_torch(weight, data, kind, name)
    return weight


def fill_by_native_code(weight: GroupedTensor, data: Tensor, kind: BlockType, name: str) -> bool:
    """Write all of a weight as ``grouped_weight`` does; False where there is no native code."""
    reader = _native_reader(kind)
    if reader is None:
        return False
    row = reader(data.contiguous(), kind, weight)
    if row is not None:
        raise _not_finite(name, row)
    return True


@functools.cache
def _native_reader(kind: BlockType) -> BlockReader | None:
    """The native code if it gives what is given here, for blocks of any bytes."""
    reader = find_block_reader()
    if reader is None:
        return None
    bytes_ = torch.arange(64 * 4 * kind.nbytes) * 2654435761 >> 7 & 0xBF  # no infinite float16
    data = bytes_.to(torch.uint8).view(64, -1)
    ours, theirs = (new_weight(torch.Size((64, 4 * kind.elements)), kind) for _ in "12")
    fill_by_torch(ours, data, kind, "")
    if reader(data, kind, theirs) is not None:
        return None
    return reader if all(map(torch.equal, _tensors(ours), _tensors(theirs))) else None


def _tensors(weight: GroupedTensor) -> list[Tensor]:
    made = (weight.data, weight.scale, weight.row_scale, weight.zero)
    return [tensor for tensor in made if tensor is not None]


def fill_by_torch(weight: GroupedTensor, data: Tensor, kind: BlockType, name: str) -> None:
    """Write all of a weight as ``grouped_weight`` does."""
    out_features, columns = weight.shape
    step = max(1, _TILE_ELEMENTS // max(1, columns))
    is_inference = torch.is_inference_mode_enabled()

    def work(start: int) -> None:
        with torch.inference_mode(is_inference):
            groups = _read(data[start : start + step], kind)
            _check_finite(groups, name, start)
            _store(groups, weight.rows(start, start + step))

    starts = range(0, out_features, step)
    workers = min(torch.get_num_threads(), len(starts))
    if workers <= 1:
        for start in starts:
            work(start)
        return
    # Each works on rows of its own: these operations are too small to share one among threads.
    with cpu_threads(1), ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(work, starts):
            pass


def new_weight(shape: torch.Size, kind: BlockType) -> GroupedTensor:
    """A weight for blocks of a type; nothing is written yet."""
    rows, columns = shape
    format = FORMATS[kind.name]
    is_int8 = format.bits == 8
    groups = (rows, columns // 32)
    size, dtype = (columns, torch.int8) if is_int8 else (columns // 2, torch.uint8)
    return GroupedTensor(
        torch.empty((rows, size), dtype=dtype),
        torch.empty(groups, dtype=torch.float16),
        torch.empty(rows, dtype=torch.float32),
        shape,
        format,
        torch.empty(groups, dtype=torch.float16) if format.has_zeros else None,
    )


def _read(rows: Tensor, kind: BlockType) -> _Groups:
    blocks = rows.reshape(-1, kind.nbytes)
    moved = _MOVED.get(kind.name)
    groups = _rounded(values(PARTS[kind.name](blocks))) if moved is None else moved(blocks)
    lowest = None if groups.lowest is None else groups.lowest.reshape(len(rows), -1)
    return _Groups(groups.data.reshape(len(rows), -1), groups.step.reshape(len(rows), -1), lowest)


def _q8_0(blocks: Tensor) -> _Groups:
    return _Groups(blocks[:, 2:].view(torch.int8), halves(blocks, 0))


def _q5_0(blocks: Tensor) -> _Groups:
    packed = blocks[:, 6:]
    integers = torch.cat((packed & 15, packed >> 4), dim=1) | fifth_bits(blocks[:, 2:6])
    return _Groups(integers.view(torch.int8) - 16, halves(blocks, 0))


def _q4_0(blocks: Tensor) -> _Groups:
    return _Groups(_neighbours(blocks[:, 2:]), halves(blocks, 0))


def _q4_1(blocks: Tensor) -> _Groups:
    factors = halves(blocks, 0, 2)
    return _Groups(_neighbours(blocks[:, 4:]), factors[:, :1], factors[:, 1:])


def _q4_k(blocks: Tensor) -> _Groups:
    return _Groups(_neighbours(blocks[:, 16:].reshape(-1, 4, 32)), *scales_and_minima(blocks))


_MOVED: Mapping[str, Callable[[Tensor], _Groups]] = {
    "Q8_0": _q8_0,
    "Q5_0": _q5_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q4_K": _q4_k,
}


def _neighbours(packed: Tensor) -> Tensor:
    """Halves of bytes in our order.

    Theirs has the numbers of the first half of a group in the lower halves of its bytes, those of
    the second half in the upper ones; ours has neighbours in a byte.

    Shapes:
        packed: (..., size) uint8, 2 * size numbers
        return: (..., 2, size / 2) uint8
    """
    pairs = packed.contiguous().view(torch.int16)
    first = pairs & 0x0F | pairs >> 4 & 0xF0
    second = pairs >> 4 & 0x0F | pairs >> 8 & 0xF0
    return torch.stack((first, second), dim=-2).to(torch.uint8)


def _rounded(numbers: Tensor) -> _Groups:
    """Numbers as the nearest integers; the largest of 32 neighbours becomes 127."""
    numbers = numbers.view(-1, 32)
    largest = torch.maximum(numbers.amax(dim=1, keepdim=True), -numbers.amin(dim=1, keepdim=True))
    # Rounded to the bits of a float16 before the integers are chosen.
    step = ((largest / 127).view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32)
    step = torch.where(torch.isfinite(largest), step, largest)
    integers = numbers.div_(torch.where(step > 0, step, torch.inf)).round_()
    # What is not finite is refused by its step.
    return _Groups(integers.nan_to_num_(0.0).clamp_(-127, 127).to(torch.int8), step)


def _check_finite(groups: _Groups, name: str, start: int) -> None:
    is_finite = torch.isfinite(groups.step).all(dim=1)
    if groups.lowest is not None:
        is_finite &= torch.isfinite(groups.lowest).all(dim=1)
    if not bool(is_finite.all()):
        raise _not_finite(name, start + int(is_finite.logical_not().nonzero()[0, 0]))


def _not_finite(name: str, row: int) -> ModelFileError:
    return ModelFileError(
        f"{name}: row {row} has a scale that is infinite or not a number; "
        f"the file is damaged or overflowed when it was made"
    )


def _store(groups: _Groups, rows: GroupedTensor) -> None:
    """Write some rows of a weight."""
    rows.data.copy_(groups.data)
    step, lowest = groups.step, groups.lowest
    if lowest is None:
        row_scale = _row_scale(step)
        rows.scale.copy_(step / row_scale[:, None])
        rows.row_scale.copy_(row_scale)
        return
    assert rows.zero is not None
    is_flat = lowest.abs() >= _LARGEST_ZERO * step.abs()
    row_scale = _row_scale(torch.where(is_flat, lowest, step))
    scale = (step / row_scale[:, None]).to(torch.float16)
    is_flat |= scale == 0
    # (0 - -1) * scale is what a flat group is everywhere.
    kept = scale.to(torch.float32) * row_scale[:, None]
    rows.zero.copy_(torch.where(is_flat, -1.0, -lowest / torch.where(is_flat, 1.0, kept)))
    rows.scale.copy_(torch.where(is_flat, lowest / row_scale[:, None], scale))
    rows.row_scale.copy_(row_scale)
    if bool(is_flat.any()):
        rows.data.view(*step.shape, 16)[is_flat] = 0


def _row_scale(step: Tensor) -> Tensor:
    """A power of two for each row, (rows,) float32, that brings its largest step to 0.5 to 1.

    So products of float16 arithmetic stay in its range. Where that would cost a small step of the
    row some of its bits, the factor is 1, as in the file.
    """
    largest = step.abs().amax(dim=1) if step.shape[1] else step.new_zeros(len(step))
    mantissa, exponent = torch.frexp(largest)
    exponent -= (mantissa == 0.5).to(exponent.dtype)
    row_scale = torch.exp2(exponent.clamp(-120, 120).to(torch.float32))
    moved = (step / row_scale[:, None]).to(torch.float16).to(torch.float32) * row_scale[:, None]
    stayed = step.to(torch.float16).to(torch.float32)
    is_worse = ((moved - step).abs() > (stayed - step).abs()).any(dim=1)
    return torch.where(is_worse & (largest <= _LARGEST_HALF), 1.0, row_scale)
