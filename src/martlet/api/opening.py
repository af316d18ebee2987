"""From a model's name to its files, in whatever layout they are."""

from __future__ import annotations

from pathlib import Path

from martlet.checkpoint.names import MANIFEST_NAME
from martlet.checkpoint.store import open_store
from martlet.conversion.detect import open_direct
from martlet.conversion.source_files import SourceFiles
from martlet.engine.loading import OpenedModel
from martlet.engine.model_files import ModelFiles, StoreFiles
from martlet.hub.locate import locate

__all__ = ["open_files", "open_model"]


def open_model(model: str | Path) -> OpenedModel:
    """The model of that name or at that path, its headers checked; no weight has been read.

    One of the hub that is not here is fetched first, without a word: callers that talk to people
    ask ``martlet.hub.locate`` for it before.

    Raises:
        ModelNotFoundError: there is no such model.
        DownloadError: it is on the hub, and cannot be fetched.
        ModelFileError: its files are damaged or do not belong together.
    """
    return OpenedModel(open_files(locate(model)))


def open_files(path: Path) -> ModelFiles:
    """The files of the model at a path: ours, or a checkpoint that runs as it is, GGUF too.

    Raises:
        ModelNotFoundError: neither is there.
        ModelFileError: its files are damaged, or only ``martlet convert`` can read them.
    """
    if path.exists() and not (path / MANIFEST_NAME).is_file():
        source = open_direct(path)
        if source is not None:
            return SourceFiles(path, source)
    return StoreFiles(open_store(path))
