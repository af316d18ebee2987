"""What becomes of each weight of a model folder while it is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from martlet.checkpoint.store import Store
from martlet.compression.requantize import in_formats
from martlet.memory.executor import BlockTransform, resident_nbytes
from martlet.models.architecture import BlockSpec, TensorSpec
from martlet.quantization.formats import WeightFormat, parse_format
from martlet.quantization.scheme import StoredWeight

__all__ = ["LoadedForms"]


@dataclass(frozen=True)
class LoadedForms:
    """The form that each weight of a folder is computed with.

    ``quantize`` is what was asked for: "none", the name of a format, or None to keep all as it is
    stored. What the folder says that its weights are is kept too, "int4" of any group size: it may
    hold some matrices in a wider format on purpose. Otherwise all linears and embeddings take the
    format, and nothing else does.
    """

    store: Store
    specs: tuple[BlockSpec, ...]
    quantize: str | None

    @property
    def is_changed(self) -> bool:
        """Whether any weight may be another than the stored one."""
        return self.quantize not in (None, self.store.quantize)

    @property
    def has_int4(self) -> bool:
        """Whether matrices have 4 bits already, so that asking for them makes nothing smaller."""
        return any(
            format is not None and format.bits == 4
            for formats in self._formats.values()
            for format in formats.values()
        )

    def format_of(self, block: BlockSpec, tensor: TensorSpec) -> WeightFormat | None:
        """The format that a tensor is computed with; None for floats."""
        return self._formats[block.name][tensor.name]

    def nbytes(self, block: BlockSpec, dtype: torch.dtype) -> int:
        """Bytes of a block where a processor computes; floats take ``dtype``."""
        weights, formats = self.store.block(block.name), self._formats[block.name]
        return sum(
            _loaded_nbytes(weights[tensor.name], formats[tensor.name], dtype)
            for tensor in block.tensors
        )

    def transform(self, device: torch.device) -> BlockTransform | None:
        """What happens to each block on its way, computed on ``device``; None = nothing."""
        if not self.is_changed:
            return None
        return lambda name, weights: in_formats(weights, self._formats[name], device)

    @cached_property
    def _formats(self) -> Mapping[str, Mapping[str, WeightFormat | None]]:
        """By name of block and tensor."""
        formats = {}
        for block in self.specs:
            weights = self.store.block(block.name)
            formats[block.name] = {t.name: self._form(weights[t.name], t) for t in block.tensors}
        return formats

    def _form(self, weight: StoredWeight, tensor: TensorSpec) -> WeightFormat | None:
        if self.quantize is not None and self.is_changed and tensor.kind != "other":
            return parse_format(self.quantize)
        return None if isinstance(weight, Tensor) else weight.format


def _loaded_nbytes(weight: StoredWeight, format: WeightFormat | None, dtype: torch.dtype) -> int:
    if format is None:
        return weight.shape.numel() * dtype.itemsize
    if not isinstance(weight, Tensor) and weight.format == format:
        return resident_nbytes(weight, dtype)
    out_features, in_features = weight.shape
    return format.nbytes(out_features, in_features)
