"""The words of a plan: parts of a model, tiers, phases, budgets. Values only; no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from martlet.quantization.kv_form import KVForm

__all__ = [
    "ALIGNMENT_BYTES",
    "STACKS",
    "BlockSize",
    "Budget",
    "Demand",
    "DeviceKind",
    "Phase",
    "PhasePlan",
    "Placement",
    "Tier",
    "aligned",
    "block_index",
    "in_running_order",
    "narrower_hint",
    "stack_of",
]

Tier = Literal["gpu", "ram", "disk"]
Phase = Literal["encode", "prefill", "decode"]
DeviceKind = Literal["cuda", "cpu"]
PartStack = Literal["fixed", "encoder", "decoder", "once"]

STACKS: tuple[PartStack, ...] = ("fixed", "encoder", "decoder", "once")
"""Kinds of parts: weights of no layer, the two stacks of blocks, and what a decoder block needs
once a text (keys and values of the encoder's output), named "decoder.3.once"."""

ALIGNMENT_BYTES = 256
"""Parts begin at such addresses of GPU memory, as the driver's own allocations do."""

_PHASES_OF_STACK: dict[PartStack, frozenset[Phase]] = {
    "fixed": frozenset(("encode", "prefill", "decode")),
    "encoder": frozenset(("encode",)),
    "decoder": frozenset(("prefill", "decode")),
    "once": frozenset(("prefill",)),
}


@dataclass(frozen=True)
class BlockSize:
    """One part of a model: what moves together, and the bytes that it takes once it is loaded.

    ``name`` is "fixed", "encoder.3", "decoder.3" or "decoder.3.once". ``phases`` are those that
    read the part; None derives them from the name. ``has_int4`` says that the model is stored in 4
    bits already, which is the least there is.
    """

    name: str
    nbytes: int
    phases: frozenset[Phase] | None = None
    has_int4: bool = False

    def is_read_in(self, phase: Phase) -> bool:
        """Whether a phase computes with this part."""
        return phase in (
            _PHASES_OF_STACK[stack_of(self.name)] if self.phases is None else self.phases
        )


@dataclass(frozen=True)
class Budget:
    """Bytes that may be used of each tier."""

    gpu_bytes: int
    ram_bytes: int

    def of(self, tier: Tier) -> int:
        """The budget of one tier."""
        return {"gpu": self.gpu_bytes, "ram": self.ram_bytes, "disk": 0}[tier]


@dataclass(frozen=True)
class Demand:
    """What generation needs beside the weights, on the device that computes.

    ``context_bytes`` is what the driver's context, libraries and compiled kernels take of a GPU
    before anything else does; the CPU has none. ``num_texts`` are those that the cache holds at a
    time, each of ``text_tokens`` tokens in the decoder; 0 where no text was planned for.
    ``kv_cache`` is the form that ``kv_cache_bytes`` are counted for.
    """

    kv_cache_bytes: int = 0
    workspace_bytes: int = 0
    context_bytes: int = 0
    num_texts: int = 0
    text_tokens: int = 0
    kv_cache: KVForm = "none"

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.kv_cache_bytes + self.workspace_bytes + self.context_bytes


@dataclass(frozen=True)
class Placement:
    """One part in one phase: the tier that holds it and what computes it (None: not used)."""

    block: str
    nbytes: int
    tier: Tier
    computed_on: Literal["gpu", "cpu"] | None

    @property
    def is_streamed(self) -> bool:
        """Whether the part is copied to the GPU each time this phase computes with it."""
        return self.tier != "gpu" and self.computed_on == "gpu"


@dataclass(frozen=True)
class PhasePlan:
    """All parts in one phase, each placed once."""

    phase: Phase
    placements: tuple[Placement, ...]

    def weight_bytes(self, tier: Tier) -> int:
        """Bytes that a tier gives to weights in this phase; on the GPU each part is aligned."""
        return sum(
            aligned(p.nbytes) if tier == "gpu" else p.nbytes
            for p in self.placements
            if p.tier == tier
        )

    def read_bytes(self) -> int:
        """Bytes of the weights that this phase computes with, wherever they live."""
        return sum(p.nbytes for p in self.placements if p.computed_on is not None)

    def streamed(self) -> tuple[Placement, ...]:
        """The parts that are copied to the GPU for this phase, in the order in which they run."""
        chosen = {p.block: p for p in self.placements if p.is_streamed}
        return tuple(chosen[name] for name in in_running_order(chosen))


def aligned(num_bytes: int) -> int:
    """Bytes that a part takes of GPU memory: rounded up to where the next part may begin."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def stack_of(name: str) -> PartStack:
    """The kind of a part, by its name."""
    if name.endswith(".once"):
        return "once"
    stack = name.partition(".")[0]
    for known in STACKS:
        if stack == known:
            return known
    raise AssertionError(f"no part of a model is called {name!r}")


def block_index(name: str) -> int:
    """The number of a part's block in its stack: 3 of "decoder.3.once"; 0 for "fixed"."""
    return 0 if name == "fixed" else int(name.split(".")[1])


def narrower_hint(blocks: Iterable[BlockSize]) -> str:
    """The flag that makes a model smaller, with a comma; "" where it has 4 bits already."""
    return "" if any(block.has_int4 for block in blocks) else "--quantize int4, "


def in_running_order(names: Iterable[str]) -> list[str]:
    """Names of parts of one phase in the order in which they are needed.

    A decoder block is followed by its own "once" part.
    """
    return sorted(names, key=lambda name: (block_index(name), stack_of(name) == "once"))
