"""Checkpoints in the layout of Hugging Face transformers, of any family that has a file here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from martlet.checkpoint.shards import read_json_object, read_shard_index
from martlet.conversion.cutting import cut, cut_shape
from martlet.conversion.hub_config import read_config, read_generation
from martlet.conversion.packed_linears import PackedLinears
from martlet.conversion.packed_settings import read_packed_settings
from martlet.conversion.source import StoredForm, TokenizerFiles
from martlet.conversion.table import TensorTable, safetensors_table
from martlet.conversion.tokenizer_files import find_tokenizer
from martlet.conversion.torch_files import torch_table
from martlet.errors import ModelFileError
from martlet.models.architecture import CheckpointTensor
from martlet.models.config import load_architecture
from martlet.quantization.scheme import StoredWeight

__all__ = ["HuggingFaceSource", "find_weights"]


def find_weights(folder: Path) -> Path | None:
    """The weight file or shard index of a Hugging Face folder, safetensors first."""
    names = (
        "model.safetensors",
        "model.safetensors.index.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
    )
    return next((folder / name for name in names if (folder / name).is_file()), None)


class HuggingFaceSource:
    """A folder with config.json and weights: floats, or the packed integers of GPTQ or AWQ.

    Code that comes with a folder (``auto_map``) is never looked at: what computes is ours.

    Raises:
        ModelFileError: an architecture that is not supported, or files that are not sound.
    """

    format_name = "huggingface"

    def __init__(self, folder: Path, tokenizer: Path | None = None) -> None:
        raw = read_json_object(folder / "config.json")
        settings = read_packed_settings(folder, raw)
        self._table = _read_table(folder)
        self._packed = None if settings is None else PackedLinears(self._table, settings)
        self.compression: dict[str, Any] = {}
        if settings is not None:
            self.format_name = f"huggingface-{settings.method}"
            self.compression = {"method": settings.method, "imported": True}
        has_head = "lm_head.weight" in self._table
        self.family, self.config = read_config(folder, raw, has_head=has_head)
        self.generation = read_generation(folder)
        self._architecture = load_architecture(self.config, folder)
        self.tokenizer: TokenizerFiles | None = find_tokenizer(
            self.family, self._architecture.vocab_size, [folder], tokenizer
        )
        self._names = frozenset(
            block.prefix + spec.name
            for block in self._architecture.block_specs()
            for spec in block.tensors
        )

    def stored_as(self, name: str) -> StoredForm:
        """The float type of a tensor, or the format of its integers."""
        if self._packed is not None and self._packed_stem(name) is not None:
            return StoredForm(self._packed.format)
        return StoredForm(self._table.find(*self._place(name).names).dtype)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, turned and cut as ``tensor`` returns it."""
        place = self._place(name)
        if self._packed is not None and (stem := self._packed_stem(name)) is not None:
            return cut_shape(place, self._packed.shape(stem))
        shape = self._table.find(*place.names).shape
        return cut_shape(place, shape[::-1] if place.transposed else shape)

    def tensor(self, name: str) -> StoredWeight:
        """The tensor of that name, turned round and cut out as the architecture says."""
        self.forget()
        place = self._place(name)
        if self._packed is not None and (stem := self._packed_stem(name)) is not None:
            if name.removesuffix("weight") + "bias" not in self._names:
                self._packed.require_no_bias(stem)
            return cut(place, self._packed.load(stem))
        tensor = self._table.find(*place.names).load()
        return cut(place, tensor.T if place.transposed else tensor)

    def forget(self) -> None:
        """Give back the memory of the pages read so far."""
        self._table.forget()

    def _place(self, name: str) -> CheckpointTensor:
        return self._architecture.checkpoint_tensor(name)

    def _packed_stem(self, name: str) -> str | None:
        """What stands before "qweight" where that tensor is packed; None where it is floats."""
        if self._packed is None or not name.endswith(".weight"):
            return None
        stems = (known.removesuffix("weight") for known in self._place(name).names)
        return next((stem for stem in stems if self._packed.has(stem)), None)


def _read_table(folder: Path) -> TensorTable:
    path = find_weights(folder)
    if path is None:
        raise ModelFileError(f"{folder}: no model.safetensors and no pytorch_model.bin")
    if path.name.endswith(".index.json"):
        files = list(dict.fromkeys(read_shard_index(path).values()))
    else:
        files = [path]
    if ".safetensors" in path.name:
        return safetensors_table(folder, files)
    return torch_table(folder, files)
