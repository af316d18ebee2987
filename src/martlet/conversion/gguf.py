"""GGUF files as a source: keys become config.json, blocks our groups, the rest stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from martlet.checkpoint.gguf_parts import open_gguf
from martlet.conversion.cutting import cut, cut_shape
from martlet.conversion.gguf_config import gguf_config
from martlet.conversion.gguf_keys import ArchitectureKeys
from martlet.conversion.gguf_names import NOT_WEIGHTS, GGUFNames
from martlet.conversion.gguf_tensors import GGUFTensors
from martlet.conversion.gguf_tokenizer import gguf_tokenizer
from martlet.conversion.source import StoredForm, TokenizerFiles
from martlet.conversion.tokenizer_files import find_tokenizer
from martlet.errors import ModelFileError
from martlet.models.config import load_architecture
from martlet.quantization.scheme import StoredWeight

__all__ = ["GGUFSource"]


class GGUFSource:
    """A GGUF file, or the first of several that are one model.

    Raises:
        ModelFileError: files that are not sound, or hold something that is not supported: an
            architecture, a key, a type of numbers, a tensor that the architecture does not have.
    """

    format_name = "gguf"

    def __init__(self, path: Path, tokenizer: Path | None = None) -> None:
        model = open_gguf(path)
        self._path = path
        self._tensors = GGUFTensors(model)
        keys = ArchitectureKeys(path, model.metadata)
        self.config: dict[str, Any] = gguf_config(keys, self._tensors)
        self.family = str(self.config["model_type"])
        self.compression: dict[str, Any] = {"method": "gguf", "imported": True}
        self.tokenizer: TokenizerFiles | None
        self.generation: dict[str, Any] = {}
        if tokenizer is None:
            self.tokenizer, self.generation = gguf_tokenizer(model.metadata, path)
        else:
            vocab_size = int(self.config["vocab_size"])
            self.tokenizer = find_tokenizer(self.family, vocab_size, [], tokenizer)
        self._names = GGUFNames(keys.architecture, self.config, self._tensors)
        self._refuse_unused()

    def stored_as(self, name: str) -> StoredForm:
        """The float type of a tensor, or the format that its blocks take."""
        return StoredForm(self._tensors.form(self._names.place(name).name))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, cut as ``tensor`` returns it."""
        place = self._names.place(name)
        return cut_shape(place.cut, self._tensors.shape(place.name))

    def tensor(self, name: str) -> StoredWeight:
        """The tensor of that name, its rows in our order."""
        self.forget()
        place = self._names.place(name)
        weight = cut(place.cut, self._tensors.load(place.name))
        if place.heads:
            if weight.shape[0] % (2 * place.heads):
                raise ModelFileError(
                    f"{self._path}: {place.name} has {weight.shape[0]} rows, which do not divide "
                    f"into pairs of {place.heads} heads"
                )
            order = place.row_order(weight.shape[0])
            weight = weight[order] if isinstance(weight, Tensor) else weight.picked(order)
        if place.added and isinstance(weight, Tensor):
            weight = weight - place.added
        return weight

    def forget(self) -> None:
        """Give back the memory of the pages read so far."""
        self._tensors.forget()

    def _refuse_unused(self) -> None:
        """Refuse a tensor that nothing would read: it may change what the model computes."""
        read = {
            self._names.place(block.prefix + spec.name).name
            for block in load_architecture(self.config).block_specs()
            for spec in block.tensors
        }
        unused = sorted(self._tensors.names() - read - NOT_WEIGHTS)
        if unused:
            raise ModelFileError(
                f"{self._path}: has {unused[0]}"
                f"{f' and {len(unused) - 1} more tensors' if unused[1:] else ''}, which "
                f"{self.family} as it is computed here does not have; take the safetensors of the "
                f"model instead"
            )
