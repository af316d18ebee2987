"""What becomes of each weight of a model while it is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch

from martlet.checkpoint.planned import PlannedWeight
from martlet.engine.model_files import ModelFiles
from martlet.models.architecture import BlockSpec, TensorSpec
from martlet.quantization.formats import WeightFormat, parse_format

__all__ = ["LoadedForms"]


@dataclass(frozen=True)
class LoadedForms:
    """The form that each weight of a model is computed with.

    ``asked`` is what was asked for: "none", the name of a format, or None for what is usual for
    such files. What the files say that their weights are is kept, "int4" of any group size: they
    may hold some matrices in a wider format on purpose. Otherwise all linears and embeddings take
    the format, and nothing else does.
    """

    files: ModelFiles
    specs: tuple[BlockSpec, ...]
    asked: str | None

    @property
    def quantize(self) -> str:
        """What matrices are after loading: "none", or the name of a format."""
        return self.asked or self.files.usual_quantize or self.files.quantize

    @property
    def is_changed(self) -> bool:
        """Whether any weight may be another than the stored one."""
        return self.quantize != self.files.quantize

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

    def formats(self, block: str) -> Mapping[str, WeightFormat | None]:
        """The formats of a block's tensors by their names inside it."""
        return self._formats[block]

    def nbytes(self, block: BlockSpec, dtype: torch.dtype) -> int:
        """Bytes of a block where a processor computes; floats take ``dtype``."""
        formats = self._formats[block.name]
        return sum(
            _loaded_nbytes(planned, formats[tensor.name], dtype)
            for tensor, planned in self._stored(block)
        )

    @cached_property
    def _formats(self) -> Mapping[str, Mapping[str, WeightFormat | None]]:
        """By name of block and tensor."""
        return {
            block.name: {t.name: self._form(planned, t) for t, planned in self._stored(block)}
            for block in self.specs
        }

    def _stored(self, block: BlockSpec) -> Iterator[tuple[TensorSpec, PlannedWeight]]:
        by_name = {weight.name: weight for weight in self.files.block_weights(block.name)}
        for tensor in block.tensors:
            yield tensor, by_name[block.prefix + tensor.name]

    def _form(self, stored: PlannedWeight, tensor: TensorSpec) -> WeightFormat | None:
        if self.is_changed and tensor.kind != "other":
            return parse_format(self.quantize)
        return stored.format


def _loaded_nbytes(stored: PlannedWeight, format: WeightFormat | None, dtype: torch.dtype) -> int:
    if format is None:
        return stored.numel * dtype.itemsize
    if stored.format == format:
        return stored.nbytes
    out_features, in_features = stored.shape
    return format.nbytes(out_features, in_features)
