"""Finished blocks kept beside a destination, so that a compression can go on where it ended.

Each block is a model folder of its own with one block in it: it appears complete or not at all, and
its digests are checked when it is read again. A lock, which dies with its process, keeps a second
run out; a fingerprint tells whether what is there was made in the same way from the same weights.
"""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from martlet.checkpoint.store import open_store
from martlet.checkpoint.writer import StoreContents, StoreWriter
from martlet.compression.compress_block import LayerReport
from martlet.compression.compressor import CompressedBlock
from martlet.errors import MartletError, UsageError
from martlet.models.architecture import BlockSpec
from martlet.quantization.scheme import StoredWeight

__all__ = ["WorkFolder", "work_path"]

_FINGERPRINT = "fingerprint.json"
_LOCK = ".lock"


def work_path(destination: Path) -> Path:
    """Where the work for a destination lies."""
    destination = destination.absolute()
    return destination.parent / f".{destination.name}.compressing"


class WorkFolder:
    """Entered for as long as the work lasts; what is finished stays there until ``remove``.

    ``family`` is that of the model. ``has_resumed`` tells whether blocks of the same work were
    there, ``has_discarded`` whether those of another were, which are gone.

    Raises:
        UsageError: another process works there, or the folder cannot be made.
    """

    def __init__(self, destination: Path, family: str, fingerprint: Mapping[str, Any]) -> None:
        self.path = work_path(destination)
        self.has_resumed = self.has_discarded = False
        self._family = family
        self._fingerprint = json.dumps(fingerprint, sort_keys=True, ensure_ascii=False, indent=1)

    def __enter__(self) -> WorkFolder:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / _LOCK).open("w")
        except OSError as error:
            raise UsageError(
                f"{self.path}: cannot be written: {error.strerror}; choose another folder"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise UsageError(
                f"{self.path}: another process is compressing to the same folder; "
                "wait for it or choose another"
            ) from error
        self._adopt()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._lock.close()

    def load(self, spec: BlockSpec) -> CompressedBlock | None:
        """A block that was finished before; None where it is not there, or damaged."""
        path = self.path / spec.name
        if not path.is_dir():
            return None
        try:
            store = open_store(path)
            store.verify()
            weights = store.block(spec.name)
            report = store.manifest.compression
            layers = tuple(LayerReport(**layer) for layer in report["layers"])
            return CompressedBlock(spec, weights, layers, report["output_error"], report["seconds"])
        except (MartletError, KeyError, TypeError):
            shutil.rmtree(path, ignore_errors=True)
            return None

    def weights(self, block: str) -> Mapping[str, StoredWeight]:
        """The weights of a block that is there, for the end; no byte is copied."""
        return open_store(self.path / block).block(block)

    def save(self, block: CompressedBlock) -> None:
        """Keep a block that is done.

        Raises:
            DiskFullError: there is no room for it.
        """
        report = {
            "layers": [asdict(layer) for layer in block.layers],
            "output_error": block.output_error,
            "seconds": block.seconds,
        }
        planned = block.planned
        contents = StoreContents((planned,), {}, self._family, compression=report)
        with StoreWriter(self.path / block.spec.name, contents, overwrite=True) as writer:
            writer.write_block(planned, block.weights)

    def remove(self) -> None:
        """Delete the folder: all of it is in its destination."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _adopt(self) -> None:
        """Keep what is of the same work, delete what is not."""
        file = self.path / _FINGERPRINT
        others = [path for path in self.path.iterdir() if path.name not in (_FINGERPRINT, _LOCK)]
        try:
            is_same = file.read_text(encoding="utf-8") == self._fingerprint
        except (OSError, UnicodeDecodeError):
            is_same = False
        if is_same:
            self.has_resumed = bool(others)
            return
        self.has_discarded = bool(others)
        for path in others:
            shutil.rmtree(path, ignore_errors=True)
        file.write_text(self._fingerprint, encoding="utf-8")
