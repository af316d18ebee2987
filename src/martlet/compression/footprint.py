"""How much memory compressing a model takes; pure arithmetic, done before the work."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from martlet.compression.compress_block import PIECE_ELEMENTS, Method
from martlet.compression.compressor import batch_size_of
from martlet.compression.walk import Sample, WalkBatch, batches_of
from martlet.models.architecture import (
    FIXED,
    Architecture,
    BlockSpec,
    LinearInput,
    Stack,
    hidden_size_of,
    stacks_of,
)

__all__ = ["Footprint", "footprint", "padded_tokens"]

_FLOAT_BYTES = 4
# Of a piece of a matrix in float32 that exist at a time while its integers are chosen: itself, what
# is left of it, its rounded and its corrected form, their differences, and the tables of a tile.
_MATRIX_COPIES = 7
# Of a Hessian: its sorted copy, the factor, a unit matrix, its inverse, and the solver's own.
_FACTOR_COPIES = 5
# Activations of a batch that exist at a time, in widths of the widest matrix.
_ACTIVATION_COPIES = 8


@dataclass(frozen=True)
class Footprint:
    """Memory for the work beside the program itself; on a CPU ``device_bytes`` is main memory too.

    ``host_bytes`` is hidden states, and the block that is worked on.
    """

    device_bytes: int
    host_bytes: int


def footprint(
    architecture: Architecture,
    samples: Sequence[Sample],
    method: Method,
    device: torch.device,
    dtype: torch.dtype,
) -> Footprint:
    """What the largest block, its inputs and the hidden states of the samples take."""
    specs = {spec.name: spec for spec in architecture.block_specs()}
    stacks = stacks_of(architecture)
    width = hidden_size_of(architecture)
    batches = batches_of(samples, batch_size_of(samples, device)) if samples else []
    batch_tokens, kept_tokens = padded_tokens(batches, stacks)
    needs = [
        _block_bytes(specs[f"{stack}.0"], architecture.linear_inputs(stack), method, dtype)
        + _ACTIVATION_COPIES * batch_tokens * _widest(specs[f"{stack}.0"]) * dtype.itemsize
        for stack in stacks
    ]
    head = architecture.head_input()
    needs.append(_rounding_bytes(specs[FIXED], [head], method))
    # Embeddings are integers by then, or floats of the computation's type.
    tables = sum(math.prod(t.shape) for t in specs[FIXED].tensors if t.kind == "embedding")
    largest = max(sum(math.prod(t.shape) for t in spec.tensors) for spec in specs.values())
    # What a block reads, what its float form gives, what it gives, and the encoder's output.
    hidden = (3 + architecture.has_encoder) * kept_tokens * width * dtype.itemsize
    # The block that is worked on, and its scaled form.
    floats = (1 + method.is_scaled) * largest * _FLOAT_BYTES
    return Footprint(max(needs) + tables * dtype.itemsize, hidden + floats)


def padded_tokens(batches: Sequence[WalkBatch], stacks: Sequence[Stack]) -> tuple[int, int]:
    """Padded tokens of the largest batch, and of all batches of the longer stack."""
    if not batches:
        return 0, 0
    padded = [[len(b.samples) * max(b.counts(stack)) for b in batches] for stack in stacks]
    return max(map(max, padded)), max(map(sum, padded))


def _widest(spec: BlockSpec) -> int:
    return max(max(tensor.shape) for tensor in spec.tensors)


def _block_bytes(
    spec: BlockSpec, inputs: Sequence[LinearInput], method: Method, dtype: torch.dtype
) -> int:
    """The most of: the float block that runs, and the block whose integers are chosen."""
    running = sum(math.prod(tensor.shape) for tensor in spec.tensors) * dtype.itemsize
    moments = sum(side * side * _FLOAT_BYTES for side in _sides(spec, inputs))
    return moments + max(running, _rounding_bytes(spec, inputs, method))


def _rounding_bytes(spec: BlockSpec, inputs: Sequence[LinearInput], method: Method) -> int:
    largest = max(math.prod(t.shape) for t in spec.tensors if t.kind != "other")
    side = max(_sides(spec, inputs))
    # Factors are judged with a whole matrix, or those that share its input.
    shared = 3 * largest if method.is_scaled else 0
    total = max(_MATRIX_COPIES * min(largest, PIECE_ELEMENTS), shared) * _FLOAT_BYTES
    if method.is_gptq:
        total += _FACTOR_COPIES * side * side * _FLOAT_BYTES
    return total


def _sides(spec: BlockSpec, inputs: Sequence[LinearInput]) -> list[int]:
    """Channels of each input."""
    columns = {tensor.name: tensor.shape[-1] for tensor in spec.tensors}
    return [columns[source.consumers[0]] for source in inputs]
