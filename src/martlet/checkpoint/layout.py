"""Where each tensor of a model folder will lie; pure arithmetic, done before a byte is written."""

from __future__ import annotations

import json
from dataclasses import dataclass

from martlet.checkpoint.manifest import BlockEntry
from martlet.checkpoint.planned import PlannedBlock, PlannedTensor
from martlet.checkpoint.safetensors import DTYPE_NAMES

__all__ = [
    "BLOCK_ALIGNMENT_BYTES",
    "MAX_FILE_BYTES",
    "TENSOR_ALIGNMENT_BYTES",
    "FileLayout",
    "plan_files",
]

BLOCK_ALIGNMENT_BYTES = 4096
TENSOR_ALIGNMENT_BYTES = 64
MAX_FILE_BYTES = 4 << 30
PAD_PREFIX = "__pad__."


@dataclass(frozen=True)
class FileLayout:
    """One safetensors file: its first bytes, and what follows.

    ``tensors`` holds pairs: the zeros to write before a tensor, and the tensor.
    """

    name: str
    head: bytes
    tensors: tuple[tuple[int, PlannedTensor], ...]
    blocks: tuple[BlockEntry, ...]
    size_bytes: int


def plan_files(
    blocks: tuple[PlannedBlock, ...], max_file_bytes: int = MAX_FILE_BYTES
) -> tuple[FileLayout, ...]:
    """The files for these blocks: one, or several cut between blocks past ``max_file_bytes``."""
    groups: list[list[PlannedBlock]] = [[]]
    size = 0
    for block in blocks:
        nbytes = _round_up(_block_nbytes(block), BLOCK_ALIGNMENT_BYTES)
        if groups[-1] and size + nbytes > max_file_bytes:
            groups.append([])
            size = 0
        groups[-1].append(block)
        size += nbytes
    if len(groups) == 1:
        return (_lay_out("model.safetensors", groups[0]),)
    return tuple(
        _lay_out(f"model-{index:05d}-of-{len(groups):05d}.safetensors", group)
        for index, group in enumerate(groups, start=1)
    )


def _round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def _block_nbytes(block: PlannedBlock) -> int:
    end = 0
    for tensor in block.tensors:
        end = _round_up(end, TENSOR_ALIGNMENT_BYTES) + tensor.nbytes
    return end


def _lay_out(name: str, blocks: list[PlannedBlock]) -> FileLayout:
    table: dict[str, dict[str, object]] = {}
    tensors: list[tuple[int, PlannedTensor]] = []
    ranges: list[tuple[PlannedBlock, int, int]] = []
    end = 0
    for block in blocks:
        alignment = BLOCK_ALIGNMENT_BYTES
        start = _round_up(end, alignment)
        for tensor in block.tensors:
            offset = _round_up(end, alignment)
            alignment = TENSOR_ALIGNMENT_BYTES
            if gap := offset - end:
                pad = f"{PAD_PREFIX}{len(tensors)}"
                table[pad] = _entry("U8", (gap,), end, offset)
            table[tensor.name] = _entry(
                DTYPE_NAMES[tensor.dtype], tensor.shape, offset, offset + tensor.nbytes
            )
            tensors.append((gap, tensor))
            end = offset + tensor.nbytes
        ranges.append((block, start, end))
    text = json.dumps({"__metadata__": {"format": "pt"}, **table}, separators=(",", ":")).encode()
    # Spaces after the JSON bring the first byte of the data to a page boundary.
    data_offset = _round_up(8 + len(text), BLOCK_ALIGNMENT_BYTES)
    text = text.ljust(data_offset - 8)
    entries = tuple(
        BlockEntry(
            name=block.name,
            prefix=block.prefix,
            file=name,
            offset=data_offset + start,
            nbytes=stop - start,
            tensors=tuple(tensor.name for tensor in block.tensors),
        )
        for block, start, stop in ranges
    )
    head = len(text).to_bytes(8, "little") + text
    return FileLayout(name, head, tuple(tensors), entries, data_offset + end)


def _entry(dtype: str, shape: tuple[int, ...], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
