"""Finds out what kind of checkpoint lies at a path, by its files and first bytes."""

from __future__ import annotations

from pathlib import Path

from martlet.checkpoint.manifest import MANIFEST_NAME
from martlet.checkpoint.store import open_store
from martlet.conversion.huggingface import HuggingFaceSource, find_weights
from martlet.conversion.own_store import StoreSource
from martlet.conversion.source import Source
from martlet.errors import ModelFileError, ModelNotFoundError

__all__ = ["open_source"]


def open_source(
    path: Path, *, tokenizer: Path | None = None, num_heads: int | None = None
) -> Source:
    """The checkpoint at a path, whatever its format.

    ``tokenizer`` is a file or folder to use instead of what lies beside the checkpoint;
    ``num_heads`` is needed only where no tensor tells it.

    Raises:
        ModelNotFoundError: there is nothing at that path.
        ModelFileError: no known format, or a file that is not sound.
    """
    if not path.exists():
        raise ModelNotFoundError(f"{path}: there is nothing at that path")
    folder = path if path.is_dir() else path.parent
    if (path / MANIFEST_NAME).is_file():
        return StoreSource(open_store(path), tokenizer)
    weights = find_weights(folder)
    if weights is not None and path in (folder, weights) and (folder / "config.json").is_file():
        return HuggingFaceSource(folder, tokenizer)
    raise ModelFileError(
        f"{path}: no checkpoint recognised; looked for {MANIFEST_NAME}, config.json with "
        f"model.safetensors or pytorch_model.bin (also sharded)"
    )
