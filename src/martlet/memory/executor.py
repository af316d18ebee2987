"""Hands out weights, block by block, on the device that computes with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Literal, Protocol

import torch

from martlet.memory.capacity import report_out_of_memory
from martlet.memory.plan import Plan
from martlet.quantization.scheme import QuantizedTensor, StoredWeight

__all__ = ["BlockSource", "BlockTransform", "Executor", "ResidentExecutor", "resident_nbytes"]

BlockTransform = Callable[[str, Mapping[str, StoredWeight]], Mapping[str, StoredWeight]]
"""(name of a block, its weights as stored) -> its weights to compute with, as for int8 at load."""


class BlockSource(Protocol):
    """Where weights come from: a model folder, or weights made in memory."""

    def block(self, name: str) -> Mapping[str, StoredWeight]:
        """The weights of a block under their names inside the block."""
        ...


class Executor(Protocol):
    """Carries out a plan: the model asks for blocks in order and does not know where they were.

    ``device`` is where hidden states live, ``dtype`` their type, ``plan`` what is carried out.
    """

    plan: Plan
    device: torch.device
    dtype: torch.dtype

    def fixed(self) -> Mapping[str, StoredWeight]:
        """The weights that belong to no layer."""
        ...

    def blocks(
        self, stack: Literal["encoder", "decoder"]
    ) -> Iterator[tuple[int, Mapping[str, StoredWeight]]]:
        """The blocks of a stack in order, each with its index; valid until the next one."""
        ...


class ResidentExecutor:
    """All blocks on the computing device for good.

    Float weights are cast to ``dtype`` once. int8 weights stay int8; on the CPU they stay the
    memory that the source gave, which for a model folder is the mapped file: no copy is made.
    ``transform`` sees each block before that, for quantising at load.

    Raises:
        CapacityError: the weights do not fit after all.
    """

    def __init__(
        self,
        plan: Plan,
        source: BlockSource,
        device: torch.device,
        dtype: torch.dtype,
        transform: BlockTransform | None = None,
    ) -> None:
        assert device.type == plan.device, f"planned for {plan.device}, given {device}"
        self.plan = plan
        self.device = device
        self.dtype = dtype
        blocks: dict[str, dict[str, StoredWeight]] = {}
        for placement in plan.phases[0].placements:
            with report_out_of_memory(
                f"loading block {placement.block} ({placement.nbytes:,} bytes)",
                "close other programs, or use --quantize int8 or a smaller model",
            ):
                weights = source.block(placement.block)
                if transform is not None:
                    weights = transform(placement.block, weights)
                blocks[placement.block] = {n: self._load(w) for n, w in weights.items()}
        self._fixed = blocks.pop("fixed")
        self._stacks: dict[str, list[tuple[int, dict[str, StoredWeight]]]] = {
            "encoder": [],
            "decoder": [],
        }
        for name, weights in blocks.items():
            stack, _, index = name.partition(".")
            self._stacks[stack].append((int(index), weights))
        for stack_blocks in self._stacks.values():
            stack_blocks.sort(key=lambda block: block[0])

    def fixed(self) -> Mapping[str, StoredWeight]:
        """The weights that belong to no layer."""
        return self._fixed

    def blocks(
        self, stack: Literal["encoder", "decoder"]
    ) -> Iterator[tuple[int, Mapping[str, StoredWeight]]]:
        """The blocks of a stack in order, each with its index."""
        return iter(self._stacks[stack])

    def _load(self, weight: StoredWeight) -> StoredWeight:
        if isinstance(weight, QuantizedTensor):
            return weight.to(self.device)
        return weight.to(device=self.device, dtype=self.dtype)


def resident_nbytes(weight: StoredWeight, dtype: torch.dtype) -> int:
    """Bytes that a stored weight takes once it is loaded for computing in ``dtype``."""
    if isinstance(weight, QuantizedTensor):
        return weight.nbytes
    return weight.numel() * dtype.itemsize
