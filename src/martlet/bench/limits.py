"""The shortest time that a decode step can take on a machine."""

from __future__ import annotations

import math
from dataclasses import dataclass

from martlet.memory.plan import Plan
from martlet.models.architecture import FIXED, Architecture, TensorSpec, output_matrix_of
from martlet.quantization.formats import parse_format

__all__ = [
    "Ceilings",
    "StepBytes",
    "step_bytes",
    "step_weight_bytes",
    "tensor_bytes",
]


@dataclass(frozen=True)
class Ceilings:
    """What the machine reaches with nothing else to do; None where there is no such thing.

    ``memory_bytes_per_second`` is of the memory that the weights are computed from, ``pcie`` of
    copies from page-locked memory to the GPU, ``matrix`` of large products.
    """

    memory_bytes_per_second: float
    pcie_bytes_per_second: float | None = None
    matrix_flop_per_second: float | None = None


@dataclass(frozen=True)
class StepBytes:
    """Bytes of weights that one decode step reads, and those of them that it streams."""

    weights: int
    streamed: int = 0

    def limit_seconds(self, ceilings: Ceilings) -> float:
        """A step reads every weight, and streams some of them meanwhile; the slower one counts."""
        read_seconds = self.weights / ceilings.memory_bytes_per_second
        if not self.streamed:
            return read_seconds
        assert ceilings.pcie_bytes_per_second is not None, "streamed over an unmeasured link"
        return max(read_seconds, self.streamed / ceilings.pcie_bytes_per_second)


def step_bytes(
    architecture: Architecture, plan: Plan, quantize: str, float_bytes: int
) -> StepBytes:
    """What a decode step reads, and what of it the plan streams."""
    weights = step_weight_bytes(architecture, quantize, float_bytes)
    return StepBytes(weights, plan.streamed_bytes("decode"))


def step_weight_bytes(architecture: Architecture, quantize: str, float_bytes: int) -> int:
    """Bytes of weights that a decode step reads: the layers of the decoder and the output matrix.

    Of an embedding table one row is read, which is left out unless it is the output matrix too;
    so are tensors that are read once a text, and padding. ``float_bytes`` is the size of a number
    that is no integer.
    """
    total = 0
    for block in architecture.block_specs():
        if block.name == FIXED:
            total += tensor_bytes(output_matrix_of(architecture), quantize, float_bytes)
        elif block.name.startswith("decoder."):
            read = (tensor for tensor in block.tensors if not tensor.once)
            total += sum(tensor_bytes(tensor, quantize, float_bytes) for tensor in read)
    return total


def tensor_bytes(tensor: TensorSpec, quantize: str, float_bytes: int) -> int:
    """Bytes of one tensor in the form in which it is computed with, all scales included."""
    format = parse_format(quantize)
    if format is not None and tensor.kind != "other":
        out_features, in_features = tensor.shape
        return format.nbytes(out_features, in_features)
    return math.prod(tensor.shape) * float_bytes
