"""Our own model folder as a source, to quantise it or to change its float type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from martlet.checkpoint.store import Store
from martlet.conversion.source import StoredForm, TokenizerFiles
from martlet.conversion.tokenizer_files import find_tokenizer
from martlet.errors import ModelFileError
from martlet.quantization.scheme import StoredWeight

__all__ = ["StoreSource"]


class StoreSource:
    """A model folder that is converted again."""

    format_name = "martlet"

    def __init__(self, store: Store, tokenizer: Path | None = None) -> None:
        self.family = store.family
        self.config: dict[str, Any] = store.config
        self.generation: dict[str, Any] = store.generation
        self.compression: dict[str, Any] = dict(store.manifest.compression)
        self.tokenizer: TokenizerFiles | None = None
        if tokenizer is not None:
            vocab_size = int(store.config["vocab_size"])
            self.tokenizer = find_tokenizer(self.family, vocab_size, [], tokenizer)
        elif store.tokenizer is not None:
            files = {name: store.folder / name for name in store.tokenizer.files}
            self.tokenizer = TokenizerFiles(store.tokenizer.kind, files)
        self._store = store
        self._weights: dict[str, StoredWeight] = {}
        self._forms: dict[str, StoredForm] = {}
        for block in store.manifest.blocks:
            for name, weight in store.block(block.name).items():
                self._weights[block.prefix + name] = weight
            for planned in store.block_weights(block.name):
                self._forms[planned.name] = StoredForm(planned.form, planned.scale_dtype)

    def stored_as(self, name: str) -> StoredForm:
        """The float type of a tensor, or the format of its integers."""
        self._check(name)
        return self._forms[name]

    def tensor(self, name: str) -> StoredWeight:
        """The tensor of that name, as it is."""
        self._store.forget()
        self._check(name)
        return self._weights[name]

    def _check(self, name: str) -> None:
        if name not in self._weights:
            raise ModelFileError(f"{self._store.folder}: has no tensor {name}")
