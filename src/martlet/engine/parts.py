"""The parts of an architecture: what the memory side moves, laid out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch

from martlet.memory.layout import PartLayout, TensorForm, lay_out_part
from martlet.memory.plan import Work
from martlet.models.architecture import (
    FIXED,
    Architecture,
    BlockSpec,
    TensorSpec,
    output_matrix_of,
)
from martlet.quantization.formats import WeightFormat

__all__ = ["bytes_per_weight", "head_bytes", "lay_out_parts", "work_of"]

_ONCE_SUFFIX = ".once"


def lay_out_parts(
    specs: Iterable[BlockSpec],
    format_of: Callable[[BlockSpec, TensorSpec], WeightFormat | None],
    dtype: torch.dtype,
) -> dict[str, PartLayout]:
    """The parts of a model by name, in the order of its blocks.

    ``format_of`` tells which matrices are integers of which format; tensors for which it is None
    take ``dtype``. What a decoder block reads once a text is a part of its own, "decoder.3.once".
    """
    parts: dict[str, PartLayout] = {}
    for spec in specs:
        for name, is_once in ((spec.name, False), (spec.name + _ONCE_SUFFIX, True)):
            forms = [
                TensorForm(tensor.name, tensor.shape, format_of(spec, tensor))
                for tensor in spec.tensors
                if tensor.once is is_once
            ]
            if forms:
                parts[name] = lay_out_part(name, spec.name, forms, dtype)
    return parts


def head_bytes(fixed: PartLayout, architecture: Architecture) -> int:
    """Bytes of the output matrix, which every decode step reads, among the fixed weights."""
    name = output_matrix_of(architecture).name
    head = next(entry for entry in fixed.entries if entry.name == name)
    return head.nbytes + head.groups_nbytes


def work_of(
    parts: Mapping[str, PartLayout], prompt_tokens: int, architecture: Architecture
) -> Work:
    """A prompt of so many tokens; an encoder reads it, and the decoder begins with one token."""
    has_encoder = architecture.has_encoder
    return Work(
        prompt_tokens=1 if has_encoder else prompt_tokens,
        encoder_tokens=prompt_tokens if has_encoder else 0,
        fixed_decode_bytes=head_bytes(parts["fixed"], architecture),
        bytes_per_weight=bytes_per_weight(parts),
    )


def bytes_per_weight(parts: Mapping[str, PartLayout]) -> float:
    """Bytes of one weight of a layer's matrix, the scales of groups included, on average."""
    num_weights, num_bytes = 0, 0.0
    for part in parts.values():
        matrices = [entry for entry in part.entries if len(entry.shape) > 1 and part.block != FIXED]
        for entry in matrices:
            size = math.prod(entry.shape)
            one = entry.format.bytes_per_weight if entry.format else entry.dtype.itemsize
            num_weights += size
            num_bytes += size * one
    return num_bytes / num_weights
