"""Our own model folder as a source, to quantise it or to change its float type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from martlet.checkpoint.store import Store
from martlet.conversion.source import TokenizerFiles
from martlet.conversion.tokenizer_files import find_tokenizer
from martlet.errors import ModelFileError
from martlet.quantization.scheme import QuantizedTensor, StoredWeight

__all__ = ["StoreSource"]


class StoreSource:
    """A model folder that is converted again."""

    format_name = "martlet"

    def __init__(self, store: Store, tokenizer: Path | None = None) -> None:
        self.family = store.family
        self.config: dict[str, Any] = store.config
        self.generation: dict[str, Any] = store.generation
        self.tokenizer: TokenizerFiles | None = None
        if tokenizer is not None:
            vocab_size = int(store.config["vocab_size"])
            self.tokenizer = find_tokenizer(self.family, vocab_size, [], tokenizer)
        elif store.tokenizer is not None:
            files = {name: store.folder / name for name in store.tokenizer.files}
            self.tokenizer = TokenizerFiles(store.tokenizer.kind, files)
        self._store = store
        self._weights: dict[str, StoredWeight] = {}
        for block in store.manifest.blocks:
            for name, weight in store.block(block.name).items():
                self._weights[block.prefix + name] = weight

    def stored_as(self, name: str) -> tuple[torch.dtype, torch.dtype | None]:
        """Element type of a tensor, and of its scales if it is int8."""
        weight = self._find(name)
        if isinstance(weight, QuantizedTensor):
            return weight.data.dtype, weight.scale.dtype
        assert isinstance(weight, torch.Tensor), "model folders hold no groups yet"
        return weight.dtype, None

    def tensor(self, name: str) -> StoredWeight:
        """The tensor of that name, as it is."""
        self._store.forget()
        return self._find(name)

    def _find(self, name: str) -> StoredWeight:
        if name not in self._weights:
            raise ModelFileError(f"{self._store.folder}: has no tensor {name}")
        return self._weights[name]
