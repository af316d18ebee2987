"""Which parts stay in GPU memory, and which are streamed through slots because not all fit.

The parts of a stack that are streamed lie evenly between those that stay, so that the link to the
GPU always has a part to copy while resident ones are computed. The first block of a stack is
among them when any is: it is copied while the pass before ends, and frees its slot first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from martlet.device.size import format_bytes, whole_mib
from martlet.errors import CapacityError
from martlet.memory.parts import (
    BlockSize,
    Budget,
    Demand,
    aligned,
    block_index,
    narrower_hint,
    stack_of,
)

__all__ = ["NUM_SLOTS", "Layout", "spread_parts"]

NUM_SLOTS = 2
"""One part is computed while the next is copied; measured, a third slot gains nothing."""


@dataclass(frozen=True)
class _Split:
    """One way to divide a stack into resident and streamed parts."""

    streamed: Mapping[int, BlockSize]  # by block index
    streamed_bytes: int
    resident_bytes: int


@dataclass(frozen=True)
class Layout:
    """Where all parts of a model would live on a machine with a GPU.

    ``slot_bytes`` holds any streamed part, and a streamed decoder block together with its streamed
    "once" part behind it; both begin at aligned offsets. It is 0 when nothing is streamed.
    """

    fixed_bytes: int
    splits: tuple[_Split, ...]
    slot_bytes: int

    @property
    def streamed(self) -> frozenset[str]:
        """Names of the parts that stay in RAM."""
        return frozenset(part.name for split in self.splits for part in split.streamed.values())

    @property
    def slots_bytes(self) -> int:
        """Bytes of all slots together."""
        return NUM_SLOTS * self.slot_bytes

    @property
    def resident_bytes(self) -> int:
        """Bytes of the blocks that stay in GPU memory."""
        return sum(split.resident_bytes for split in self.splits)

    @property
    def gpu_bytes(self) -> int:
        """Bytes of GPU memory for weights."""
        return self.fixed_bytes + self.resident_bytes + self.slots_bytes

    @property
    def ram_bytes(self) -> int:
        """Bytes of RAM for weights."""
        return sum(split.streamed_bytes for split in self.splits)


def spread_parts(blocks: Sequence[BlockSize], budget: Budget, demand: Demand) -> Layout:
    """The layout within the budget that streams the fewest bytes.

    Bytes of decoder blocks count first: they are copied for every token. Then those that are
    needed once a text, of the decoder before those of the encoder, whose long computation hides
    copies better. So more memory never makes a plan slower.

    Raises:
        CapacityError: there is none; names every amount, and the missing MiB rounded up.
    """
    free_bytes = budget.gpu_bytes - demand.total_bytes
    for layout in _layouts(blocks):
        if layout.gpu_bytes <= free_bytes and layout.ram_bytes <= budget.ram_bytes:
            return layout
    smallest = min(_layouts(blocks), key=lambda layout: layout.gpu_bytes)
    if smallest.gpu_bytes > free_bytes:
        raise _too_little_gpu_memory(smallest, budget, demand, narrower_hint(blocks))
    fitting = (layout for layout in _layouts(blocks) if layout.gpu_bytes <= free_bytes)
    least_streamed = min(fitting, key=lambda layout: layout.ram_bytes)
    affordable = (layout for layout in _layouts(blocks) if layout.ram_bytes <= budget.ram_bytes)
    more_gpu_bytes = min(layout.gpu_bytes for layout in affordable) - free_bytes
    raise _too_little_ram(least_streamed, budget, more_gpu_bytes, narrower_hint(blocks))


def _layouts(blocks: Sequence[BlockSize]) -> Iterator[Layout]:
    """All layouts with evenly spread parts, from the fewest streamed bytes to the most."""
    fixed_bytes = sum(aligned(b.nbytes) for b in blocks if stack_of(b.name) == "fixed")
    decoders, onces, encoders = (_splits(blocks, stack) for stack in ("decoder", "once", "encoder"))
    alone_bytes = [_largest_bytes(encoder) for encoder in encoders]
    for decoder in decoders:
        for once in onces:
            together_bytes = _largest_bytes(decoder, once)
            for encoder, encoder_bytes in zip(encoders, alone_bytes, strict=True):
                slot_bytes = max(together_bytes, encoder_bytes)
                yield Layout(fixed_bytes, (decoder, once, encoder), slot_bytes)


def _splits(blocks: Sequence[BlockSize], stack: str) -> list[_Split]:
    """The evenly spread ways to stream 0, 1, .. all parts of a stack, fewest bytes first."""
    parts = sorted(
        (block for block in blocks if stack_of(block.name) == stack),
        key=lambda part: block_index(part.name),
    )
    splits = []
    for num_streamed in range(len(parts) + 1):
        chosen = {i * len(parts) // num_streamed for i in range(num_streamed)}
        splits.append(
            _Split(
                {block_index(parts[i].name): parts[i] for i in sorted(chosen)},
                sum(parts[i].nbytes for i in chosen),
                sum(aligned(part.nbytes) for i, part in enumerate(parts) if i not in chosen),
            )
        )
    return sorted(splits, key=lambda split: split.streamed_bytes)


def _largest_bytes(*splits: _Split) -> int:
    """Bytes of the largest streamed block, all its streamed parts behind each other."""
    block_bytes: Counter[int] = Counter()
    for split in splits:
        for index, part in split.streamed.items():
            block_bytes[index] += aligned(part.nbytes)
    return max(block_bytes.values(), default=0)


def _too_little_gpu_memory(
    layout: Layout, budget: Budget, demand: Demand, narrower: str
) -> CapacityError:
    needed_bytes = layout.gpu_bytes + demand.total_bytes
    amounts = (
        ("driver context and kernels", demand.context_bytes),
        ("embeddings, norms and head", layout.fixed_bytes),
        ("resident blocks", layout.resident_bytes),
        (f"{NUM_SLOTS} slots for streamed blocks", layout.slots_bytes),
        ("KV cache", demand.kv_cache_bytes),
        ("workspace", demand.workspace_bytes),
    )
    named = ", ".join(f"{name} {format_bytes(amount)}" for name, amount in amounts if amount)
    return CapacityError(
        f"the model needs at least {format_bytes(needed_bytes)} of GPU memory ({named}) "
        f"and {format_bytes(budget.gpu_bytes)} may be used: "
        f"{whole_mib(needed_bytes - budget.gpu_bytes)} MiB are missing; use --device cpu, "
        f"{narrower}a smaller model, or a larger --gpu-memory if the machine has it"
    )


def _too_little_ram(
    layout: Layout, budget: Budget, more_gpu_bytes: int, narrower: str
) -> CapacityError:
    return CapacityError(
        f"{format_bytes(layout.ram_bytes)} of weights do not fit into GPU memory and wait in RAM, "
        f"of which {format_bytes(budget.ram_bytes)} may be used: "
        f"{whole_mib(layout.ram_bytes - budget.ram_bytes)} MiB are missing, and weights are not "
        f"streamed from disk; use a larger --ram, {whole_mib(more_gpu_bytes)} MiB more "
        f"--gpu-memory, {narrower}or a smaller model"
    )
