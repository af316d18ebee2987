"""Hands out weights, block by block, on the device that computes with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import torch

from martlet.memory.capacity import report_out_of_memory
from martlet.memory.plan import Phase, Plan
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor, StoredWeight, Weight

__all__ = ["BlockSource", "Executor", "ResidentExecutor"]


class BlockSource(Protocol):
    """Where weights come from: a model's files, or weights made in memory."""

    def block(self, name: str) -> Mapping[str, StoredWeight]:
        """The weights of a block under their names inside the block.

        The mapping may read a weight only when it is asked for it, anew each time.
        """
        ...


class Executor(Protocol):
    """Carries out a plan: the model asks for blocks in order and does not know where they were.

    ``device`` is where hidden states live, ``dtype`` their type, ``plan`` what is carried out.
    """

    plan: Plan
    device: torch.device
    dtype: torch.dtype

    @property
    def is_capturable(self) -> bool:
        """Whether decode steps can be captured into a graph."""
        ...

    def fixed(self) -> Mapping[str, Weight]:
        """The weights that belong to no layer."""
        ...

    def blocks(self, phase: Phase) -> Iterator[tuple[int, Mapping[str, Weight]]]:
        """The blocks of a phase in order, each with its index; valid until the next one.

        What is read once a text comes with "prefill" alone.
        """
        ...

    def prime(self) -> None:
        """Make ready for a decode step that was captured; every other phase undoes it."""
        ...


class ResidentExecutor:
    """All blocks on the computing device for good.

    Float weights are cast to ``dtype`` once. int8 weights stay int8; on the CPU they stay the
    memory that the source gave, which for a model folder is the mapped file: no copy is made.

    Raises:
        CapacityError: the weights do not fit after all.
    """

    def __init__(
        self,
        plan: Plan,
        source: BlockSource,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert device.type == plan.device, f"planned for {plan.device}, given {device}"
        self.plan = plan
        self.device = device
        self.dtype = dtype
        blocks: dict[str, dict[str, Weight]] = {}
        for placement in plan.phases[0].placements:
            with report_out_of_memory(
                f"loading block {placement.block} ({placement.nbytes:,} bytes)",
                "close other programs, or use --quantize int4 or a smaller model",
            ):
                weights = source.block(placement.block)
                blocks[placement.block] = {n: self._load(w) for n, w in weights.items()}
        self._fixed = blocks.pop("fixed")
        self._stacks: dict[str, list[tuple[int, dict[str, Weight]]]] = {
            "encoder": [],
            "decoder": [],
        }
        for name, loaded in blocks.items():
            stack, _, index = name.partition(".")
            self._stacks[stack].append((int(index), loaded))
        for stack_blocks in self._stacks.values():
            stack_blocks.sort(key=lambda block: block[0])

    @property
    def is_capturable(self) -> bool:
        """A processor has no graphs."""
        return False

    def fixed(self) -> Mapping[str, Weight]:
        """The weights that belong to no layer."""
        return self._fixed

    def blocks(self, phase: Phase) -> Iterator[tuple[int, Mapping[str, Weight]]]:
        """The blocks of a phase in order, each with its index."""
        return iter(self._stacks["encoder" if phase == "encode" else "decoder"])

    def prime(self) -> None:
        """Nothing is in the way."""

    def _load(self, weight: StoredWeight) -> StoredWeight:
        if isinstance(weight, QuantizedTensor | GroupedTensor):
            return weight.to(self.device)
        return weight.to(device=self.device, dtype=self.dtype)
