"""Which weights the tensors of a file make, all of it checked against the header of the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from martlet.checkpoint.manifest import BlockEntry, FormatEntry
from martlet.checkpoint.planned import SCALE_SUFFIX, ZERO_SUFFIX, PlannedTensor, PlannedWeight
from martlet.checkpoint.safetensors import Header, TensorEntry
from martlet.errors import ModelFileError
from martlet.quantization.formats import INT8

__all__ = ["listed_weights"]


def listed_weights(
    path: Path, block: BlockEntry, header: Header, formats: Mapping[str, FormatEntry]
) -> tuple[PlannedWeight, ...]:
    """The weights of a block in file order, under their names in the file.

    ``path`` is that of the manifest, for errors.

    Raises:
        ModelFileError: the block or one of its tensors lies elsewhere, is missing or of another
            type or shape than its format has.
    """
    _check_ranges(path, block, header)
    listed = dict.fromkeys(block.tensors)
    weights: list[PlannedWeight] = []
    parts: set[str] = set()  # scales and zeros, each the part of a weight that stands elsewhere
    for name in listed:
        weight = _weight(path, header.tensors[name], listed, header, formats)
        for part in weight.tensors[1:]:
            if part.name in parts:
                raise ModelFileError(f"{path}: {part.name} would belong to {name} and to another")
            _check_part(path, weight, part, listed, header)
            parts.add(part.name)
        weights.append(weight)
    return tuple(weight for weight in weights if weight.name not in parts)


def _weight(
    path: Path,
    entry: TensorEntry,
    listed: Mapping[str, None],
    header: Header,
    formats: Mapping[str, FormatEntry],
) -> PlannedWeight:
    name = entry.name
    if name in formats:
        weight = PlannedWeight(name, formats[name].shape, formats[name].format)
        _check_part(path, weight, weight.tensors[0], listed, header)
        if not formats[name].format.has_zeros and name + ZERO_SUFFIX in listed:
            raise ModelFileError(
                f"{path}: {name} is {formats[name].format.name}, which has no zeros, but there is "
                f"{name}{ZERO_SUFFIX}"
            )
        return weight
    if name + SCALE_SUFFIX in listed:
        scale = header.tensors[name + SCALE_SUFFIX]
        _check_row_scale(path, entry, scale)
        return PlannedWeight(name, entry.shape, INT8, scale.dtype)
    if entry.dtype == torch.int8:
        raise ModelFileError(f"{path}: {name} is int8 but has no {name}{SCALE_SUFFIX}")
    if not entry.dtype.is_floating_point:
        raise ModelFileError(
            f"{path}: {name} is {entry.dtype} but has no entry in formats; expected a float type"
        )
    return PlannedWeight(name, entry.shape, entry.dtype)


def _check_ranges(path: Path, block: BlockEntry, header: Header) -> None:
    end = block.offset + block.nbytes
    if block.offset < header.data_offset or end > header.size_bytes:
        raise ModelFileError(
            f"{path}: block {block.name} is bytes {block.offset:,} to {end:,} of {block.file}, "
            f"whose data are bytes {header.data_offset:,} to {header.size_bytes:,}"
        )
    for name in block.tensors:
        entry = header.tensors.get(name)
        if entry is None:
            raise ModelFileError(f"{path}: {block.file} has no tensor {name} of {block.name}")
        if entry.offset < block.offset or entry.offset + entry.nbytes > end:
            raise ModelFileError(f"{path}: {name} lies outside its block {block.name}")


def _check_part(
    path: Path,
    weight: PlannedWeight,
    part: PlannedTensor,
    listed: Mapping[str, None],
    header: Header,
) -> None:
    assert weight.format is not None
    what = f"{weight.name} is {weight.format.name} {list(weight.shape)}"
    if part.name not in listed:
        raise ModelFileError(f"{path}: {what} but has no {part.name} in its block")
    entry = header.tensors[part.name]
    if (entry.dtype, entry.shape) != (part.dtype, part.shape):
        raise ModelFileError(
            f"{path}: {what}, whose {part.name} is {part.dtype} {list(part.shape)}; "
            f"it is {entry.dtype} {list(entry.shape)}"
        )


def _check_row_scale(path: Path, entry: TensorEntry, scale: TensorEntry) -> None:
    if (
        entry.dtype != torch.int8
        or len(entry.shape) != 2
        or scale.shape != entry.shape[:1]
        or scale.dtype not in (torch.float32, torch.float16)
    ):
        raise ModelFileError(
            f"{path}: {scale.name} is {scale.dtype} {list(scale.shape)}, which does not fit "
            f"{entry.name}, {entry.dtype} {list(entry.shape)}"
        )
