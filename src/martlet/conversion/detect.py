"""Finds out what kind of checkpoint lies at a path, by its files and first bytes."""

from __future__ import annotations

import os
from pathlib import Path

from martlet.checkpoint.gguf import MAGIC
from martlet.checkpoint.gguf_parts import find_gguf
from martlet.checkpoint.manifest import MANIFEST_NAME
from martlet.checkpoint.mapped import MappedFile, file_size_bytes
from martlet.checkpoint.store import open_store
from martlet.conversion.bminf import BMInfSource
from martlet.conversion.gguf import GGUFSource
from martlet.conversion.huggingface import HuggingFaceSource, find_weights
from martlet.conversion.megatron import MegatronSource, find_shards
from martlet.conversion.own_store import StoreSource
from martlet.conversion.source import DirectSource, Source
from martlet.errors import ModelFileError, ModelNotFoundError

__all__ = ["open_direct", "open_source"]

_SINGLE_FILES = ("merge.pt", "checkpoint.pt")


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
    if not os.path.exists(path):  # False also for what cannot be a path
        raise ModelNotFoundError(f"{path}: there is nothing at that path")
    folder = path if path.is_dir() else path.parent
    if (path / MANIFEST_NAME).is_file():
        return StoreSource(open_store(path), tokenizer)
    weights = find_weights(folder)
    if weights is not None and path in (folder, weights) and (folder / "config.json").is_file():
        return HuggingFaceSource(folder, tokenizer)
    if path.is_file():
        return _open_file(path, tokenizer, num_heads)
    if shards := find_shards(path):
        return MegatronSource(path, shards, tokenizer, num_heads)
    for name in _SINGLE_FILES:
        if (path / name).is_file():
            return _open_file(path / name, tokenizer, num_heads)
    if file := find_gguf(path):
        return GGUFSource(file, tokenizer)
    raise ModelFileError(
        f"{path}: no checkpoint recognised; looked for {MANIFEST_NAME} (our own), config.json with "
        f"model.safetensors or pytorch_model.bin, also sharded (Hugging Face), "
        f"latest_checkpointed_iteration.txt or mp_rank_00_model_states.pt or "
        f"mp_rank_00/model_optim_rng.pt (Megatron, DeepSpeed), {' or '.join(_SINGLE_FILES)}, "
        f"NAME.gguf"
    )


def open_direct(path: Path) -> DirectSource | None:
    """The checkpoint at a path where a model can be run from it as it is; None if nothing is there.

    Raises:
        ModelFileError: a kind of checkpoint that must be converted first, or files that are not
            sound.
    """
    if path.is_file():
        return GGUFSource(path) if _begins_as_gguf(path) else None
    weights = find_weights(path)
    if weights is None or not (path / "config.json").is_file():
        file = find_gguf(path)
        return None if file is None else GGUFSource(file)
    if ".safetensors" not in weights.name:
        raise ModelFileError(
            f"{path}: {weights.name} is a pickle, which may run any code and is never loaded as a "
            f"model; make a model folder of it with martlet convert {path} DST, or take a "
            "checkpoint with safetensors"
        )
    return HuggingFaceSource(path)


def _open_file(path: Path, tokenizer: Path | None, num_heads: int | None) -> Source:
    """A single file: torch's begin with a zip or pickle mark, BMInf's with a count of zero."""
    start = MappedFile(path).read(0, min(4, file_size_bytes(path)))
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return MegatronSource(path, [path], tokenizer, num_heads)
    if start == MAGIC or path.suffix == ".gguf":
        return GGUFSource(path, tokenizer)
    if path.suffix == ".safetensors":
        raise ModelFileError(
            f"{path}: a safetensors file needs its config.json beside it; give the folder with both"
        )
    return BMInfSource(path, tokenizer, num_heads)


def _begins_as_gguf(path: Path) -> bool:
    """By its name, or by its first bytes: files in the cache of the hub have digests for names."""
    return (
        path.suffix == ".gguf"
        or MappedFile(path).read(0, min(len(MAGIC), file_size_bytes(path))) == MAGIC
    )
