"""How much memory adapting a model takes; pure arithmetic, done before the work."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.block_training import LEVEL_BYTES
from martlet.compression.footprint import padded_tokens
from martlet.compression.teacher import row_chunks
from martlet.compression.walk import Sample, batches_of
from martlet.models.architecture import FIXED, Architecture, BlockSpec, hidden_size_of, stacks_of

__all__ = ["AdaptationFootprint", "adaptation_footprint"]

_FLOAT_BYTES = 4
# Of a small number: itself, its two moments, the best state.
_NUMBER_COPIES = 4
# Widths of all matrices of a block that the way back keeps for a token, and what it makes of them.
_ACTIVATION_COPIES = 3
# Of logits in float32: themselves, with the probable ones taken out, gradients of both.
_LOGIT_COPIES = 5
# Of a matrix while its gradient is divided among its numbers, some rows at a time.
_DIVIDING_BYTES = 4 * (1 << 24) * _FLOAT_BYTES


@dataclass(frozen=True)
class AdaptationFootprint:
    """Memory beside the program itself.

    ``running_bytes`` is on the device whatever is trained there, ``smallest_levels_bytes`` what
    the integers of the largest matrix take besides, ``all_levels_bytes`` those of a whole block.
    ``model_bytes`` (the student, its numbers, all hidden states) lies on the device where there is
    room, else in main memory.
    """

    running_bytes: int
    smallest_levels_bytes: int
    all_levels_bytes: int
    model_bytes: int


def adaptation_footprint(
    architecture: Architecture,
    student: Mapping[str, Sequence[PlannedWeight]],
    samples: Sequence[Sample],
    rows_at_once: int,
    batch_size: int,
    dtype: torch.dtype,
) -> AdaptationFootprint:
    """For a student whose blocks have these weights."""
    specs = architecture.block_specs()
    blocks = [spec for spec in specs if spec.name != FIXED]
    batches = batches_of(samples, rows_at_once)
    tokens, kept_tokens = padded_tokens(batches, stacks_of(architecture))
    width = hidden_size_of(architecture)
    fixed = _numel(next(spec for spec in specs if spec.name == FIXED)) * dtype.itemsize
    running = max(
        2 * _numel(spec) * dtype.itemsize + _activation_bytes(spec, tokens, dtype)
        for spec in blocks
    )
    chunk = max(stop - start for start, stop in row_chunks(tokens, architecture.vocab_size))
    head = _LOGIT_COPIES * chunk * architecture.vocab_size * _FLOAT_BYTES
    matrices = [_matrices(spec) for spec in blocks]
    weights = [weight for own in student.values() for weight in own]
    numbers = sum(_num_numbers(weight) for weight in weights) * _NUMBER_COPIES * _FLOAT_BYTES
    # Of all samples: both models' states, the block's outputs, the encoder's output of both; and
    # what every block reads in one iteration from end to end.
    per_sample = -(-kept_tokens // len(samples))
    states = (3 + 2 * architecture.has_encoder) * kept_tokens
    states += len(blocks) * batch_size * per_sample
    return AdaptationFootprint(
        running_bytes=2 * fixed + max(running, head) + _DIVIDING_BYTES,
        smallest_levels_bytes=max(map(max, matrices)) * LEVEL_BYTES,
        all_levels_bytes=max(map(sum, matrices)) * LEVEL_BYTES,
        model_bytes=sum(weight.nbytes for weight in weights)
        + numbers
        + states * width * dtype.itemsize,
    )


def _numel(spec: BlockSpec) -> int:
    return sum(math.prod(tensor.shape) for tensor in spec.tensors)


def _matrices(spec: BlockSpec) -> list[int]:
    return [math.prod(tensor.shape) for tensor in spec.tensors if tensor.kind != "other"]


def _num_numbers(weight: PlannedWeight) -> int:
    """Scales and zeros, or the elements of a vector."""
    if weight.format is None:
        return weight.numel if len(weight.shape) == 1 else 0
    rows, columns = weight.shape
    groups = -(-columns // (weight.format.group_size or columns))
    return rows * groups * (1 + weight.format.has_zeros)


def _activation_bytes(spec: BlockSpec, tokens: int, dtype: torch.dtype) -> int:
    widths = sum(sum(tensor.shape) for tensor in spec.tensors if tensor.kind == "linear")
    return _ACTIVATION_COPIES * tokens * widths * dtype.itemsize
