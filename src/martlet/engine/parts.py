"""The parts of an architecture: what the memory side moves, laid out."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch

from martlet.memory.layout import PartLayout, TensorForm, lay_out_part
from martlet.models.architecture import BlockSpec, TensorSpec

__all__ = ["head_bytes", "lay_out_parts", "output_matrix"]

_ONCE_SUFFIX = ".once"


def lay_out_parts(
    specs: Iterable[BlockSpec],
    is_int8: Callable[[BlockSpec, TensorSpec], bool],
    dtype: torch.dtype,
) -> dict[str, PartLayout]:
    """The parts of a model by name, in the order of its blocks.

    ``is_int8`` tells which matrices are integers; all other tensors take ``dtype``. What a decoder
    block reads once a text is a part of its own, "decoder.3.once".
    """
    parts: dict[str, PartLayout] = {}
    for spec in specs:
        for name, is_once in ((spec.name, False), (spec.name + _ONCE_SUFFIX, True)):
            forms = [
                TensorForm(tensor.name, tensor.shape, is_int8(spec, tensor))
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
    return by_name[output_matrix(by_name)].nbytes
