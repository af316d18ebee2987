"""The weights of a model as they are computed with, made one tensor at a time while they are read.

Nothing is held beside what is handed out: a block is a mapping that reads a tensor when it is asked
for it, and gives back the pages of the file that it came from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from martlet.compression.requantize import in_format
from martlet.engine.loaded_forms import LoadedForms
from martlet.engine.model_files import ModelFiles
from martlet.models.architecture import BlockSpec
from martlet.quantization.scheme import StoredWeight

__all__ = ["LazyBlock", "LoadProgress", "LoadedWeights", "ReadCounter", "StoredBlocks"]

_CPU = torch.device("cpu")

LoadProgress = Callable[[int, int, str], None]
"""Called with (bytes read, bytes in all, name of the tensor) after each tensor."""


class LazyBlock(Mapping[str, StoredWeight]):
    """Weights by name, each made anew whenever it is asked for."""

    def __init__(self, names: tuple[str, ...], make: Callable[[str], StoredWeight]) -> None:
        self._names = names
        self._make = make

    def __getitem__(self, name: str) -> StoredWeight:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


class ReadCounter:
    """Tells how far reading has come; begins again where a tensor is read for the second time."""

    def __init__(self, files: ModelFiles, progress: LoadProgress | None) -> None:
        blocks = (files.block_weights(block) for block in files.block_names)
        self._sizes = {weight.name: weight.nbytes for block in blocks for weight in block}
        self._progress = progress
        self._read: set[str] = set()
        self._done_bytes = 0

    def count(self, name: str) -> None:
        """A tensor has been read; ``name`` is the whole one."""
        if name in self._read:
            self._read.clear()
            self._done_bytes = 0
        self._read.add(name)
        self._done_bytes += self._sizes[name]
        if self._progress is not None:
            self._progress(self._done_bytes, sum(self._sizes.values()), name)


class StoredBlocks:
    """The weights of a model's files as they are stored, block by block, for compressing them."""

    def __init__(self, files: ModelFiles, specs: tuple[BlockSpec, ...]) -> None:
        self._files = files
        self._specs = {spec.name: spec for spec in specs}

    def block(self, name: str) -> Mapping[str, StoredWeight]:
        """The weights of a block under their names inside it, read when they are asked for."""
        names = tuple(tensor.name for tensor in self._specs[name].tensors)
        return LazyBlock(names, lambda tensor: self._files.weight(name, tensor))


class LoadedWeights:
    """The weights that a processor computes with, block by block; floats become ``dtype``.

    What is computed with as it is stored stays a view of the file.
    """

    def __init__(
        self, forms: LoadedForms, dtype: torch.dtype, progress: LoadProgress | None = None
    ) -> None:
        self._forms = forms
        self._dtype = dtype
        self._counter = ReadCounter(forms.files, progress)
        self._specs = {spec.name: spec for spec in forms.specs}

    def block(self, name: str) -> Mapping[str, StoredWeight]:
        """The weights of a block under their names inside it, read when they are asked for."""
        spec = self._specs[name]
        names = tuple(tensor.name for tensor in spec.tensors)
        return LazyBlock(names, lambda tensor: self._loaded(spec, tensor))

    def _loaded(self, spec: BlockSpec, name: str) -> StoredWeight:
        stored = self._forms.files.weight(spec.name, name)
        whole_name = spec.prefix + name
        weight = in_format(stored, self._forms.formats(spec.name)[name], whole_name, _CPU)
        if isinstance(weight, Tensor):
            weight = weight.to(self._dtype)
        if weight is not stored:
            self._forms.files.forget()
        self._counter.count(whole_name)
        return weight
