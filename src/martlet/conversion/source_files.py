"""A foreign checkpoint as the engine reads a model: by blocks, one tensor at a time."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.absmax import QUANTIZED_KINDS
from martlet.conversion.source import DirectSource
from martlet.errors import ModelFileError
from martlet.models.architecture import BlockSpec, TensorSpec
from martlet.models.config import load_architecture
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import StoredWeight
from martlet.tokenizers.load import load_tokenizer
from martlet.tokenizers.template_files import read_chat_template, read_special_tokens
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["SourceFiles"]


class SourceFiles:
    """What ``engine.model_files.ModelFiles`` asks for, of any ``DirectSource``.

    Matrices of a checkpoint of floats become int8 while they are loaded if nobody says otherwise;
    integers stay what they are.

    Raises:
        ModelFileError: the checkpoint lacks a tensor of its architecture, or has one of a type that
            it cannot have.
    """

    def __init__(self, location: Path, source: DirectSource) -> None:
        self.location = location
        self.source = source
        specs = load_architecture(source.config).block_specs()
        self._prefixes = {spec.name: spec.prefix for spec in specs}
        self._weights = {spec.name: self._planned(spec) for spec in specs}

    @property
    def config(self) -> Mapping[str, Any]:
        """config.json in our words."""
        return self.source.config

    @property
    def generation(self) -> Mapping[str, Any]:
        """The sampling defaults of the checkpoint."""
        return self.source.generation

    @property
    def family(self) -> str:
        """The family of the source."""
        return self.source.family

    @cached_property
    def quantize(self) -> str:
        """The narrowest integers among the weights: "int4", "int8" or "none"."""
        formats = (weight.format for block in self._weights.values() for weight in block)
        bits = {format.bits for format in formats if format is not None}
        return f"int{min(bits)}" if bits else "none"

    @property
    def usual_quantize(self) -> str | None:
        """int8 for floats."""
        return "int8" if self.quantize == "none" else None

    @property
    def block_names(self) -> tuple[str, ...]:
        """All blocks of the architecture."""
        return tuple(self._weights)

    @cached_property
    def nbytes(self) -> int:
        """Bytes of all weights as they are stored."""
        return sum(weight.nbytes for block in self._weights.values() for weight in block)

    def block_weights(self, block: str) -> tuple[PlannedWeight, ...]:
        """Shape and format of each weight of a block; reads no data."""
        return self._weights[block]

    def weight(self, block: str, name: str) -> StoredWeight:
        """One tensor of a block, which gives back the pages of the one before.

        Raises:
            ModelFileError: the bytes of the tensor are not those of its form.
        """
        return self.source.tensor(self._prefixes[block] + name)

    def forget(self) -> None:
        """Give back the memory of all pages touched so far."""
        self.source.forget()

    @property
    def compression(self) -> Mapping[str, Any]:
        """As far as the source tells."""
        return self.source.compression

    def fingerprint(self) -> Mapping[str, Any]:
        """Sizes and times of all files: reading them for digests would take minutes."""
        paths = sorted(self.location.iterdir()) if self.location.is_dir() else [self.location]
        states = ((path.name, path.stat()) for path in paths if path.is_file())
        return {name: [state.st_size, state.st_mtime_ns] for name, state in states}

    @property
    def tokenizer_files(self) -> tuple[str, Mapping[str, Path]] | None:
        """The files beside the checkpoint."""
        tokenizer = self.source.tokenizer
        return None if tokenizer is None else (tokenizer.kind, tokenizer.files)

    def load_tokenizer(self) -> Tokenizer | None:
        """The tokenizer beside the checkpoint.

        Raises:
            ModelFileError, VocabularyError: a file of it is damaged.
        """
        tokenizer = self.source.tokenizer
        if tokenizer is None:
            return None
        # All of one folder; their names there may be others than those in a folder of ours.
        paths = tuple(tokenizer.files.values())
        return load_tokenizer(tokenizer.kind, paths[0].parent, tuple(path.name for path in paths))

    def chat_template(self) -> str | None:
        """The template among the files of the tokenizer."""
        return read_chat_template(self._tokenizer_paths)

    def special_tokens(self) -> Mapping[str, str]:
        """The special tokens that the files of the tokenizer name."""
        return read_special_tokens(self._tokenizer_paths)

    @property
    def _tokenizer_paths(self) -> Mapping[str, Path]:
        return self.source.tokenizer.files if self.source.tokenizer else {}

    def _planned(self, block: BlockSpec) -> tuple[PlannedWeight, ...]:
        return tuple(self._planned_weight(block, spec) for spec in block.tensors)

    def _planned_weight(self, block: BlockSpec, spec: TensorSpec) -> PlannedWeight:
        name = block.prefix + spec.name
        stored = self.source.stored_as(name)
        if isinstance(stored.form, WeightFormat):
            is_sound = spec.kind in QUANTIZED_KINDS
            found = stored.form.name
        else:
            is_sound = stored.form.is_floating_point
            found = str(stored.form)
        if not is_sound:
            raise ModelFileError(f"{self.location}: {name} is {found}, expected a float type")
        return PlannedWeight(name, self.source.shape(name), stored.form, stored.scale_dtype)
