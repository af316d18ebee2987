"""The tensors of a GGUF model by their names there."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from martlet.checkpoint.gguf_parts import GGUFModel, MappedTensor
from martlet.conversion.gguf_blocks import FLOATS, FORMATS, grouped_weight, supported_types
from martlet.errors import ModelFileError
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import GroupedTensor

__all__ = ["GGUFTensors"]


class GGUFTensors:
    """All tensors of a model, whatever number of files they are spread over.

    Raises:
        ModelFileError: one of them is of a type that is not supported.
    """

    def __init__(self, model: GGUFModel) -> None:
        self._model = model
        for tensor in model.tensors.values():
            kind = tensor.entry.type.name
            if kind not in FLOATS and kind not in FORMATS:
                raise ModelFileError(
                    f"{tensor.file.path}: {tensor.entry.name} has numbers of type {kind}, which is "
                    f"not supported; supported are {supported_types()}: take another file of the "
                    f"model"
                )

    def __contains__(self, name: object) -> bool:
        return name in self._model.tensors

    def names(self) -> frozenset[str]:
        """All names."""
        return frozenset(self._model.tensors)

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        """The shape of a tensor, slowest axis first.

        Raises:
            ModelFileError: no such tensor, or another number of axes than ``axes``.
        """
        shape = self._find(name).entry.shape
        if axes is not None and (len(shape) != axes or 0 in shape):
            raise ModelFileError(
                f"{self._model.path}: {name} has shape {list(shape)}, expected {axes} axes"
            )
        return shape

    def type_of(self, name: str) -> str:
        """The name of the type of a tensor's numbers, as in "Q4_K"."""
        return self._find(name).entry.type.name

    def form(self, name: str) -> torch.dtype | WeightFormat:
        """The type of the floats, or the format of integers, that ``load`` returns."""
        kind = self.type_of(name)
        return FLOATS[kind] if kind in FLOATS else FORMATS[kind]

    def load(self, name: str) -> Tensor | GroupedTensor:
        """A tensor: a view of the file if it is of floats, else in our groups.

        Raises:
            ModelFileError: no such tensor, or a scale in it is infinite or not a number.
        """
        tensor = self._find(name)
        entry, file = tensor.entry, tensor.file
        file.prefetch(entry.offset, entry.nbytes)
        kind = entry.type
        if kind.name in FLOATS:
            dtype = FLOATS[kind.name]
            if entry.offset % dtype.itemsize:  # the alignment may be 1
                raw = file.tensor(entry.offset, torch.uint8, (entry.nbytes,)).clone()
                return raw.view(dtype).view(entry.shape)
            return file.tensor(entry.offset, dtype, entry.shape)
        rows, columns = self.shape(name, 2)
        row_bytes = columns // kind.elements * kind.nbytes
        return grouped_weight(file.tensor(entry.offset, torch.uint8, (rows, row_bytes)), kind, name)

    def factors(self, name: str) -> list[float] | None:
        """A short tensor of finite numbers above zero; None where there is none of that name.

        Raises:
            ModelFileError: it is something else.
        """
        if name not in self:
            return None
        if self.type_of(name) != "F32" or self.shape(name, 1)[0] > 4096:
            raise ModelFileError(
                f"{self._model.path}: {name} is {self.type_of(name)} {list(self.shape(name))}, "
                f"expected at most 4,096 numbers of F32"
            )
        tensor = cast(Tensor, self.load(name))
        if not bool((torch.isfinite(tensor) & (tensor > 0)).all()):
            raise ModelFileError(f"{self._model.path}: {name} has a number that is not above zero")
        return [float(number) for number in tensor.tolist()]

    def forget(self) -> None:
        """Give back the memory of the pages read so far; views stay valid."""
        self._model.forget()

    def _find(self, name: str) -> MappedTensor:
        tensor = self._model.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{self._model.path}: has no tensor {name}")
        return tensor
