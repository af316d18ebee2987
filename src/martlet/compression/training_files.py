"""Trained blocks and unfinished training in a work folder, so that training can go on later."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from martlet.checkpoint.staging import disk_errors, sync_path
from martlet.compression.compressor import CompressedBlock
from martlet.compression.work_folder import WorkFolder
from martlet.models.architecture import BlockSpec
from martlet.quantization.scheme import StoredWeight

__all__ = ["SavedState", "TrainingFiles"]

_STATES = "training"


class SavedState:
    """A file of tensors and plain values, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[str, Any] | None:
        """What was saved last; None where there is nothing, or nothing that can be read."""
        try:
            state: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
        except (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError):
            return None
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Write the state aside, wait for the disk, and let it take the place of the old one.

        Raises:
            DiskFullError: there is no room for it.
        """
        aside = self._path.with_suffix(".partial")
        needed_bytes = sum(tensor.nbytes for tensor in _tensors(state))
        with disk_errors(self._path, needed_bytes):
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with aside.open("wb") as file:
                    torch.save(state, file)
                    file.flush()
                    os.fsync(file.fileno())
                aside.replace(self._path)
                sync_path(self._path.parent)
            finally:
                aside.unlink(missing_ok=True)


class TrainingFiles:
    """Blocks as ``WorkFolder`` keeps them, states beside them."""

    def __init__(self, folder: WorkFolder) -> None:
        self._folder = folder

    def load_block(self, spec: BlockSpec) -> Mapping[str, StoredWeight] | None:
        """A block that was trained before; None where it is not there, or damaged."""
        block = self._folder.load(spec)
        return None if block is None else block.weights

    def save_block(self, spec: BlockSpec, weights: Mapping[str, StoredWeight]) -> None:
        """Keep a block that is trained.

        Raises:
            DiskFullError: there is no room for it.
        """
        self._folder.save(CompressedBlock(spec, weights, (), None, 0.0))

    def state(self, name: str) -> SavedState:
        """The state of that name."""
        return SavedState(self._folder.path / _STATES / f"{name}.pt")


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for each in inside for tensor in _tensors(each)]
