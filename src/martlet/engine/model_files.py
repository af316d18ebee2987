"""What the engine needs of a model on disk, whatever the layout of its files is.

Martlet's own folders implement it by ``StoreFiles``; folders as the Hugging Face hub has them and
GGUF files by classes of ``conversion``, which this room does not know: ``api`` joins the two.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from martlet.checkpoint.planned import PlannedBlock, PlannedWeight
from martlet.checkpoint.store import Store
from martlet.checkpoint.writer import StoreContents
from martlet.quantization.scheme import StoredWeight
from martlet.tokenizers.load import load_tokenizer
from martlet.tokenizers.template_files import read_chat_template, read_special_tokens
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["ModelFiles", "StoreFiles", "contents_like"]


class ModelFiles(Protocol):
    """A model on disk whose headers have been read and checked, and no weight yet."""

    @property
    def location(self) -> Path:
        """The folder or file, for messages."""
        ...

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json in our words: Hugging Face's field names for the architecture."""
        ...

    @property
    def generation(self) -> Mapping[str, Any]:
        """The sampling defaults that came with the model, empty if there are none."""
        ...

    @property
    def family(self) -> str:
        """The model's entry in ``models/family.py``."""
        ...

    @property
    def quantize(self) -> str:
        """The narrowest integers among the weights as they are stored: "int4", "int8" or "none"."""
        ...

    @property
    def usual_quantize(self) -> str | None:
        """What matrices become while they are loaded if nobody says; None = they stay as stored."""
        ...

    @property
    def block_names(self) -> tuple[str, ...]:
        """All blocks, as ``Architecture.block_specs`` names them."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are stored."""
        ...

    def block_weights(self, block: str) -> tuple[PlannedWeight, ...]:
        """Shape and format of each weight of a block as ``weight`` will return it; reads none.

        Their names are whole: the prefix of the block and the name inside it.
        """
        ...

    def weight(self, block: str, name: str) -> StoredWeight:
        """One tensor of a block, by its name inside it.

        It may be a view of a mapped file, whose pages ``forget`` gives back; it stays valid, but
        pages that are touched again are read again. So the caller is done with one tensor before it
        asks for the next, as far as it can.

        Raises:
            ModelFileError: the file is damaged in a way that only its bytes tell.
        """
        ...

    def forget(self) -> None:
        """Give back the memory of all pages touched so far; weights stay valid."""
        ...

    @property
    def compression(self) -> Mapping[str, Any]:
        """How its integers came to be, in no fixed fields; empty where nothing tells."""
        ...

    def fingerprint(self) -> Mapping[str, Any]:
        """What tells these weights from others, cheaply: digests, or sizes and times of files."""
        ...

    @property
    def tokenizer_files(self) -> tuple[str, Mapping[str, Path]] | None:
        """The kind of tokenizer and {name in a model folder: where the file lies}, or None."""
        ...

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer, None where the model came without one.

        Raises:
            ModelFileError, VocabularyError: a file of it is damaged.
        """
        ...

    def chat_template(self) -> str | None:
        """The Jinja source of the model's chat template, as it came; None where there is none."""
        ...

    def special_tokens(self) -> Mapping[str, str]:
        """The special tokens that a template may name: "bos_token", "eos_token" and their like."""
        ...


class StoreFiles:
    """Martlet's own model folder as ``ModelFiles``; its weights stay as they are stored."""

    usual_quantize = None

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def location(self) -> Path:
        """The folder."""
        return self.store.folder

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        return self.store.config

    @property
    def generation(self) -> Mapping[str, Any]:
        """generation_config.json, empty where there is none."""
        return self.store.generation

    @property
    def family(self) -> str:
        """As the manifest has it."""
        return self.store.family

    @property
    def quantize(self) -> str:
        """The narrowest integers among the weights."""
        return self.store.quantize

    @property
    def block_names(self) -> tuple[str, ...]:
        """All blocks in file order."""
        return self.store.block_names

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.store.nbytes

    def block_weights(self, block: str) -> tuple[PlannedWeight, ...]:
        """Shape and format of each weight of a block, in file order."""
        return self.store.block_weights(block)

    def weight(self, block: str, name: str) -> StoredWeight:
        """One tensor of a block, a view of the mapped file."""
        return self.store.weight(block, name)

    def forget(self) -> None:
        """Give back the memory of all pages touched so far."""
        self.store.forget()

    @property
    def compression(self) -> Mapping[str, Any]:
        """As the manifest has it."""
        return self.store.manifest.compression

    def fingerprint(self) -> Mapping[str, Any]:
        """The digests of all files."""
        return {name: entry.sha256 for name, entry in self.store.manifest.files.items()}

    @property
    def tokenizer_files(self) -> tuple[str, Mapping[str, Path]] | None:
        """As the manifest names them."""
        entry = self.store.tokenizer
        if entry is None:
            return None
        return entry.kind, {name: self.store.folder / name for name in entry.files}

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that the manifest names.

        Raises:
            ModelFileError, VocabularyError: a file of it is damaged.
        """
        entry = self.store.tokenizer
        if entry is None:
            return None
        return load_tokenizer(entry.kind, self.store.folder, entry.files)

    def chat_template(self) -> str | None:
        """The template among the files of the tokenizer."""
        return read_chat_template(self._tokenizer_paths)

    def special_tokens(self) -> Mapping[str, str]:
        """The special tokens that the files of the tokenizer name."""
        return read_special_tokens(self._tokenizer_paths)

    @property
    def _tokenizer_paths(self) -> Mapping[str, Path]:
        files = self.tokenizer_files
        return files[1] if files else {}


def contents_like(
    files: ModelFiles, blocks: tuple[PlannedBlock, ...], compression: Mapping[str, Any]
) -> StoreContents:
    """A model folder of the same model with its weights in other forms, numbers aside."""
    return StoreContents(
        blocks=blocks,
        config=files.config,
        family=files.family,
        tokenizer=files.tokenizer_files,
        generation=files.generation,
        compression=compression,
    )
