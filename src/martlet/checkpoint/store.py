"""Martlet's model folder: configuration, weights in movable blocks, tokenizer files, one manifest.

docs/format.md describes the files byte by byte; ``writer.py`` writes them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

from martlet.checkpoint.listed import listed_weights
from martlet.checkpoint.manifest import (
    MANIFEST_NAME,
    Manifest,
    TokenizerEntry,
    read_manifest,
)
from martlet.checkpoint.planned import PlannedWeight, assembled
from martlet.checkpoint.safetensors import Header, TensorMap, read_header
from martlet.checkpoint.shards import inside_folder, read_json_object
from martlet.errors import ModelFileError, ModelNotFoundError
from martlet.quantization.scheme import StoredWeight

__all__ = ["Store", "VerifyProgress", "open_store"]

GENERATION_NAME = "generation_config.json"
_HASH_CHUNK_BYTES = 8 << 20

VerifyProgress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, name of the file or tensor)."""


class Store:
    """An opened model folder. Made by ``open_store``; weights are views of the mapped files.

    ``generation`` holds the sampling defaults that came with the model, empty if there are none.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Manifest,
        maps: dict[str, TensorMap],
        weights: dict[str, tuple[PlannedWeight, ...]],
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._weights = weights
        self._maps = maps
        self._blocks = {block.name: block for block in manifest.blocks}
        self.config: dict[str, Any] = read_json_object(folder / "config.json")
        has_generation = GENERATION_NAME in manifest.files
        self.generation: dict[str, Any] = (
            read_json_object(folder / GENERATION_NAME) if has_generation else {}
        )

    @property
    def family(self) -> str:
        """Which prompt formats fit: "cpm1", "cpm2", "eva", "gpt2", "llama" or "t5"."""
        return self.manifest.family

    @property
    def quantize(self) -> str:
        """The narrowest integers among the weights: "int4", "int8" or "none"."""
        return self.manifest.quantize

    @property
    def tokenizer(self) -> TokenizerEntry | None:
        """Kind and file names of the tokenizer; the files lie in ``folder``."""
        return self.manifest.tokenizer

    @property
    def block_names(self) -> tuple[str, ...]:
        """All blocks in file order."""
        return tuple(self._blocks)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return sum(block.nbytes for block in self.manifest.blocks)

    def block_nbytes(self, name: str) -> int:
        """Bytes of one block as it lies in the file, alignment gaps included."""
        return self._blocks[name].nbytes

    def block_weights(self, name: str) -> tuple[PlannedWeight, ...]:
        """Shape and format of each weight of a block, in file order; names are as in the file."""
        return self._weights[name]

    def block(self, name: str) -> dict[str, StoredWeight]:
        """The weights of a block by their names inside it; no byte is copied."""
        block = self._blocks[name]
        tensors = self._maps[block.file]
        return {
            weight.name.removeprefix(block.prefix): assembled(weight, tensors)
            for weight in self._weights[name]
        }

    def weight(self, block: str, name: str) -> StoredWeight:
        """One weight of a block by its name inside it, which must be there; no byte is copied."""
        entry = self._blocks[block]
        planned = next(w for w in self._weights[block] if w.name == entry.prefix + name)
        return assembled(planned, self._maps[entry.file])

    def forget(self) -> None:
        """Give back the memory of all pages touched so far; weights stay valid."""
        for tensors in self._maps.values():
            tensors.file.forget()

    def verify(self, progress: VerifyProgress | None = None) -> None:
        """Read every file and compare its sha256 with the manifest.

        Raises:
            ModelFileError: a file differs from what was written.
        """
        total = sum(entry.size_bytes for entry in self.manifest.files.values())
        done = 0

        def count(num_bytes: int, name: str) -> None:
            nonlocal done
            done += num_bytes
            if progress is not None:
                progress(done, total, name)

        for name, entry in self.manifest.files.items():
            _check_digest(self.folder / name, entry.sha256, count)


def open_store(folder: Path) -> Store:
    """A model folder, with everything but the digests of the weights checked.

    Raises:
        ModelNotFoundError: there is no model folder at that path.
        ModelFileError: a file is missing, damaged or does not fit the manifest.
    """
    folder = Path(folder)
    if not (folder / MANIFEST_NAME).is_file():
        raise ModelNotFoundError(
            f"{folder} holds no model that runs as it is: neither {MANIFEST_NAME}, nor config.json "
            f"with model.safetensors (or shards and their index), nor a GGUF file; martlet convert "
            f"SRC DST makes a model folder of other checkpoints"
        )
    manifest_path = folder / MANIFEST_NAME
    manifest = read_manifest(manifest_path)
    for name, entry in manifest.files.items():
        path = inside_folder(folder, name, named_by=manifest_path)
        if path.stat().st_size != entry.size_bytes:
            raise ModelFileError(
                f"{path}: {path.stat().st_size:,} bytes, the manifest says {entry.size_bytes:,}; "
                f"convert or download it again"
            )
    weight_files = {block.file for block in manifest.blocks}
    for name, entry in manifest.files.items():
        if name not in weight_files:
            # Cheap, and a vocabulary with two words exchanged is not found out in any other way.
            _check_digest(folder / name, entry.sha256)
    headers: dict[str, Header] = {}
    weights: dict[str, tuple[PlannedWeight, ...]] = {}
    for block in manifest.blocks:
        if block.file not in headers:
            headers[block.file] = read_header(folder / block.file)
        weights[block.name] = listed_weights(
            manifest_path, block, headers[block.file], manifest.formats
        )
    maps = {name: TensorMap(header) for name, header in headers.items()}
    return Store(folder, manifest, maps, weights)


def _check_digest(
    path: Path, sha256: str, progress: Callable[[int, str], None] | None = None
) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
            if progress is not None:
                progress(len(chunk), path.name)
    if digest.hexdigest() != sha256:
        raise ModelFileError(
            f"{path}: sha256 is {digest.hexdigest()}, the manifest says {sha256}; "
            f"the file has changed, convert or download it again"
        )
