"""The parts of an architecture: what the memory side moves, laid out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping

import torch

from martlet.memory.layout import PartLayout, TensorForm, lay_out_part
from martlet.memory.plan import Work
from martlet.models.architecture import FIXED, BlockSpec, TensorSpec
from martlet.quantization.formats import WeightFormat

__all__ = ["bytes_per_weight", "head_bytes", "lay_out_parts", "output_matrix", "work_of"]

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


# The tables of all architectures that serve as output matrix where there is no head of their own.
_HEADS = ("lm_head.weight", "transformer.wte.weight", "shared.weight", "model.embed_tokens.weight")


def output_matrix(names: Collection[str]) -> str:
    """Which of the fixed weights is the output matrix: the head, or the embedding that is tied."""
    return next(name for name in _HEADS if name in names)


def head_bytes(fixed: PartLayout) -> int:
    """Bytes of the output matrix, which every decode step reads, among the fixed weights."""
    by_name = {entry.name: entry for entry in fixed.entries}
    head = by_name[output_matrix(by_name)]
    return head.nbytes + head.groups_nbytes


def work_of(parts: Mapping[str, PartLayout], prompt_tokens: int, *, has_encoder: bool) -> Work:
    """A prompt of so many tokens; an encoder reads it, and the decoder begins with one token."""
    return Work(
        prompt_tokens=1 if has_encoder else prompt_tokens,
        encoder_tokens=prompt_tokens if has_encoder else 0,
        fixed_decode_bytes=head_bytes(parts["fixed"]),
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
