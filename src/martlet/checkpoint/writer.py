"""Writes a model folder: aside first, one tensor at a time, renamed into place when complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import torch
from torch import Tensor

from martlet.checkpoint.layout import (
    MAX_FILE_BYTES,
    FileLayout,
    plan_files,
)
from martlet.checkpoint.manifest import (
    MANIFEST_NAME,
    FileEntry,
    FormatEntry,
    Manifest,
    TokenizerEntry,
    is_family_name,
)
from martlet.checkpoint.planned import PlannedBlock, PlannedTensor, PlannedWeight, stored_tensors
from martlet.checkpoint.staging import disk_errors, require_space, staged_folder, sync_path
from martlet.checkpoint.store import GENERATION_NAME
from martlet.errors import UsageError
from martlet.quantization.scheme import StoredWeight, weight_nbytes

__all__ = ["StoreContents", "StoreWriter", "check_destination"]

_CHUNK_BYTES = 8 << 20
_SLACK_BYTES = 1 << 20  # manifest, configuration and what the filesystem needs for itself


@dataclass(frozen=True)
class StoreContents:
    """All that a model folder will hold, except the numbers themselves.

    ``tokenizer`` is (kind, {name in the folder: file to copy}), or None. ``compression`` says how
    the weights came to be: a JSON object, shown to people and read by nothing else.
    """

    blocks: tuple[PlannedBlock, ...]
    config: Mapping[str, Any]
    family: str
    tokenizer: tuple[str, Mapping[str, Path]] | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    max_file_bytes: int = MAX_FILE_BYTES
    compression: Mapping[str, Any] = field(default_factory=dict)

    @property
    def weights(self) -> tuple[PlannedWeight, ...]:
        """The weights of all blocks, in file order."""
        return tuple(weight for block in self.blocks for weight in block.weights)

    @property
    def formats(self) -> dict[str, FormatEntry]:
        """The matrices with groups, by their names in the file."""
        return {
            weight.name: FormatEntry(weight.format, (weight.shape[0], weight.shape[1]))
            for weight in self.weights
            if weight.format is not None and weight.format.group_size is not None
        }

    @property
    def quantize(self) -> str:
        """The narrowest integers among the weights: "int4", "int8" or "none"."""
        bits = {weight.format.bits for weight in self.weights if weight.format is not None}
        return f"int{min(bits)}" if bits else "none"


class StoreWriter:
    """Context manager that makes a model folder; tensors are written in the planned order.

    Leaving the block without an error completes the folder: files and folder are flushed to the
    disk, the manifest is written last, and the folder is renamed to ``destination``. Any error
    removes what was written and leaves the destination as it was.

    Raises:
        UsageError: the destination exists and may not be replaced, or cannot be written.
        DiskFullError: there is no room, found before the first byte or while writing.
    """

    def __init__(
        self, destination: Path, contents: StoreContents, *, overwrite: bool = False
    ) -> None:
        assert is_family_name(contents.family), contents.family
        self.destination = Path(destination).absolute()
        self.contents = contents
        self.layouts = plan_files(contents.blocks, contents.max_file_bytes)
        self.size_bytes = sum(layout.size_bytes for layout in self.layouts)
        self._overwrite = overwrite
        self._files: dict[str, FileEntry] = {}
        self._stack = contextlib.ExitStack()
        self._folder = self.destination
        self._queue: Iterator[_Step] = iter(())
        self._file: _HashedFile | None = None

    def __enter__(self) -> StoreWriter:
        check_destination(self.destination, overwrite=self._overwrite)
        tokenizer_files = self.contents.tokenizer[1] if self.contents.tokenizer else {}
        copied = sum(path.stat().st_size for path in tokenizer_files.values())
        needed = self.size_bytes + copied + _SLACK_BYTES
        with contextlib.ExitStack() as stack:
            stack.enter_context(disk_errors(self.destination, needed))
            require_space(self.destination.parent, needed)
            self._folder = stack.enter_context(staged_folder(self.destination))
            self._stack = stack.pop_all()
        self._queue = _steps(self.layouts)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Finishing happens inside the stack, so that its errors undo everything as well.
        with self._stack as stack:
            stack.push(self._close_file)
            if error is not None:
                raise error
            self._finish()

    def write(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor of the plan; the caller may drop it afterwards."""
        step = next(self._queue)
        assert (step.tensor.name, step.tensor.dtype) == (name, tensor.dtype), (step.tensor, name)
        assert step.tensor.shape == tuple(tensor.shape), (step.tensor, tensor.shape)
        if step.opens is not None:
            self._open_file(step.opens)
        assert self._file is not None
        self._file.write(bytes(step.gap_bytes))
        if tensor.numel():
            flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
            self._file.write(flat.numpy().data)

    def write_weight(self, name: str, weight: StoredWeight) -> int:
        """Write all tensors of the next weight of the plan; the number of their bytes."""
        for part, tensor in stored_tensors(name, weight):
            self.write(part, tensor)
        return weight_nbytes(weight)

    def write_block(self, block: PlannedBlock, weights: Mapping[str, StoredWeight]) -> None:
        """Write the next block of the plan; ``weights`` go by their names inside it."""
        for weight in block.weights:
            self.write_weight(weight.name, weights[weight.name.removeprefix(block.prefix)])

    def _open_file(self, layout: FileLayout) -> None:
        self._complete_file()
        self._file = _HashedFile(self._folder / layout.name)
        self._file.write(layout.head)

    def _complete_file(self) -> None:
        if self._file is not None:
            self._files[self._file.path.name] = self._file.complete()
            self._file = None

    def _close_file(self, *_: object) -> None:
        if self._file is not None:
            self._file.abandon()
            self._file = None

    def _finish(self) -> None:
        assert next(self._queue, None) is None, "not all planned tensors were written"
        self._complete_file()
        self._write_json("config.json", self.contents.config)
        if self.contents.generation:
            self._write_json(GENERATION_NAME, self.contents.generation)
        tokenizer = None
        if self.contents.tokenizer is not None:
            kind, files = self.contents.tokenizer
            for name, source in files.items():
                self._copy(source, name)
            tokenizer = TokenizerEntry(kind, tuple(files))
        manifest = Manifest(
            family=self.contents.family,
            quantize=self.contents.quantize,
            tokenizer=tokenizer,
            blocks=tuple(block for layout in self.layouts for block in layout.blocks),
            files=self._files,
            formats=self.contents.formats,
            compression=self.contents.compression,
        )
        self._write_json(MANIFEST_NAME, manifest.to_json())
        check_destination(self.destination, overwrite=self._overwrite)

    def _write_json(self, name: str, value: Mapping[str, Any]) -> None:
        file = _HashedFile(self._folder / name)
        file.write(json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n")
        self._files[name] = file.complete()

    def _copy(self, source: Path, name: str) -> None:
        file = _HashedFile(self._folder / name)
        with source.open("rb") as original:
            shutil.copyfileobj(original, _Sink(file.write), _CHUNK_BYTES)
        self._files[name] = file.complete()


def check_destination(destination: Path, *, overwrite: bool) -> None:
    """Refuse to write over anything but, if allowed, an older model folder or an empty folder.

    Raises:
        UsageError: the destination exists and may not be replaced.
    """
    if not os.path.lexists(destination):
        return
    if destination.is_symlink() or not destination.is_dir():
        raise UsageError(f"{destination} exists and is not a folder; choose another name")
    if not any(destination.iterdir()):
        return
    if not (destination / MANIFEST_NAME).is_file():
        raise UsageError(
            f"{destination} exists and is no folder that Martlet wrote; choose another name"
        )
    if not overwrite:
        raise UsageError(f"{destination} exists; pass --overwrite to replace the model there")


@dataclass(frozen=True)
class _Step:
    tensor: PlannedTensor
    gap_bytes: int
    opens: FileLayout | None


def _steps(layouts: tuple[FileLayout, ...]) -> Iterator[_Step]:
    for layout in layouts:
        opens: FileLayout | None = layout
        for gap_bytes, tensor in layout.tensors:
            yield _Step(tensor, gap_bytes, opens)
            opens = None


@dataclass(frozen=True)
class _Sink:
    write: Callable[[bytes], None]


class _HashedFile:
    """A new file whose digest is computed while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO = path.open("xb")
        self._digest = hashlib.sha256()
        self._size_bytes = 0

    def write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._file.write(data)
        self._size_bytes += len(data)

    def complete(self) -> FileEntry:
        with self._file:
            self._file.flush()
        sync_path(self.path)
        return FileEntry(self._size_bytes, self._digest.hexdigest())

    def abandon(self) -> None:
        # Closing flushes, which fails again on a full disk; the file is about to be deleted.
        with contextlib.suppress(OSError):
            self._file.close()
