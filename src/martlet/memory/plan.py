"""Where each block of weights lives and where it is computed, decided before anything is loaded.

Pure: sizes and budgets go in, a frozen value comes out, no device is touched. So plans can be
made, shown and tested for machines that nobody owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from martlet.device.size import format_bytes, whole_mib
from martlet.errors import CapacityError

__all__ = [
    "BlockSize",
    "Budget",
    "Demand",
    "DeviceKind",
    "Phase",
    "PhasePlan",
    "Placement",
    "Plan",
    "Tier",
    "make_plan",
]

Tier = Literal["gpu", "ram", "disk"]
Phase = Literal["encode", "prefill", "decode"]
DeviceKind = Literal["cuda", "cpu"]

_STACK_OF_PHASE: dict[Phase, str] = {"encode": "encoder", "prefill": "decoder", "decode": "decoder"}
# The operations of a decode step over less than this last microseconds, no longer than threads take
# to meet after each one; and when another program holds a core, they wait for it every time:
# measured on 2 cores with the 24 MB models, 126 tokens/s with one thread and 6 with two.
_ONE_THREAD_BYTES = 64 << 20
_NAME_OF_TIER: dict[Tier, str] = {"gpu": "GPU memory", "ram": "RAM", "disk": "disk"}


@dataclass(frozen=True)
class BlockSize:
    """Bytes that a block of weights takes once it is loaded; "fixed" serves every phase."""

    name: str
    nbytes: int


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
    """What generation needs beside the weights, on the device that computes."""

    kv_cache_bytes: int = 0
    workspace_bytes: int = 0


@dataclass(frozen=True)
class Placement:
    """One block in one phase: the tier that holds it and what computes it (None: not used)."""

    block: str
    nbytes: int
    tier: Tier
    computed_on: Literal["gpu", "cpu"] | None


@dataclass(frozen=True)
class PhasePlan:
    """All blocks in one phase, each placed once."""

    phase: Phase
    placements: tuple[Placement, ...]

    def weight_bytes(self, tier: Tier) -> int:
        """Bytes of weights that a tier holds in this phase."""
        return sum(p.nbytes for p in self.placements if p.tier == tier)


@dataclass(frozen=True)
class Plan:
    """The placement in force: what an executor obeys and what a user is shown.

    ``num_threads`` of the CPU read a prompt, ``decode_threads`` of them compute a single token.
    """

    device: DeviceKind
    phases: tuple[PhasePlan, ...]
    demand: Demand
    budget: Budget
    num_threads: int
    decode_threads: int

    @property
    def compute_tier(self) -> Tier:
        """The tier where hidden states, the KV cache and the workspace live."""
        return "gpu" if self.device == "cuda" else "ram"

    def weight_bytes(self, tier: Tier) -> int:
        """Most bytes of weights that a tier holds in any phase."""
        return max(phase.weight_bytes(tier) for phase in self.phases)

    def total_bytes(self, tier: Tier) -> int:
        """Most bytes of everything that a tier holds in any phase."""
        beside_weights = self.demand.kv_cache_bytes + self.demand.workspace_bytes
        return self.weight_bytes(tier) + (beside_weights if tier == self.compute_tier else 0)

    def describe(self) -> str:
        """One line for people: where the weights live and what computes."""
        tier = self.compute_tier
        num_blocks = len(self.phases[0].placements)
        where = f"all {num_blocks} blocks, {format_bytes(self.weight_bytes(tier))}, in "
        if self.device == "cuda":
            return f"{where}GPU memory; computed on the GPU"
        threads = "1 thread" if self.decode_threads == 1 else f"{self.decode_threads} threads"
        return f"{where}RAM; computed on the CPU with {threads}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        tiers: tuple[Tier, ...] = ("gpu", "ram", "disk")
        return {
            "device": self.device,
            "num_threads": self.num_threads,
            "decode_threads": self.decode_threads,
            "description": self.describe(),
            "budget": asdict(self.budget),
            **asdict(self.demand),
            "total_bytes": {tier: self.total_bytes(tier) for tier in tiers},
            "phases": {
                phase.phase: [asdict(placement) for placement in phase.placements]
                for phase in self.phases
            },
        }


def make_plan(
    blocks: Sequence[BlockSize],
    device: DeviceKind,
    budget: Budget,
    demand: Demand = Demand(),
    num_threads: int = 1,
    decode_threads: int | None = None,
) -> Plan:
    """The plan that keeps every block on the computing device's own tier.

    A model with "encoder." blocks is planned for three phases, any other for two.
    ``decode_threads`` None is the planner's choice: all, but one for a small model.

    Raises:
        CapacityError: weights, cache and workspace together are above the budget of that tier; the
            message says how many MiB are missing, rounded up.
    """
    assert len({block.name for block in blocks}) == len(blocks), "a block is named twice"
    has_encoder = any(block.name.startswith("encoder.") for block in blocks)
    names: tuple[Phase, ...] = ("prefill", "decode")
    if has_encoder:
        names = ("encode", *names)
    plan = Plan(
        device=device,
        phases=tuple(_resident_phase(phase, blocks, device) for phase in names),
        demand=demand,
        budget=budget,
        num_threads=num_threads,
        decode_threads=decode_threads or _useful_decode_threads(blocks, num_threads),
    )
    _require_fit(plan)
    return plan


def _useful_decode_threads(blocks: Sequence[BlockSize], num_threads: int) -> int:
    small = sum(block.nbytes for block in blocks) < _ONE_THREAD_BYTES
    return 1 if small else num_threads


def _resident_phase(phase: Phase, blocks: Sequence[BlockSize], device: DeviceKind) -> PhasePlan:
    tier: Tier = "gpu" if device == "cuda" else "ram"
    processor: Literal["gpu", "cpu"] = "gpu" if device == "cuda" else "cpu"
    idle_prefix = "decoder." if _STACK_OF_PHASE[phase] == "encoder" else "encoder."
    return PhasePlan(
        phase,
        tuple(
            Placement(
                block=block.name,
                nbytes=block.nbytes,
                tier=tier,
                computed_on=None if block.name.startswith(idle_prefix) else processor,
            )
            for block in blocks
        ),
    )


def _require_fit(plan: Plan) -> None:
    tier = plan.compute_tier
    needed_bytes, available_bytes = plan.total_bytes(tier), plan.budget.of(tier)
    if needed_bytes <= available_bytes:
        return
    flag = "--gpu-memory" if tier == "gpu" else "--ram"
    elsewhere = "--device cpu, " if tier == "gpu" else ""
    raise CapacityError(
        f"the model needs {format_bytes(needed_bytes)} of {_NAME_OF_TIER[tier]} "
        f"(weights {format_bytes(plan.weight_bytes(tier))}, "
        f"KV cache {format_bytes(plan.demand.kv_cache_bytes)}, "
        f"workspace {format_bytes(plan.demand.workspace_bytes)}) "
        f"and {format_bytes(available_bytes)} may be used: "
        f"{whole_mib(needed_bytes - available_bytes)} MiB are missing; "
        f"use {elsewhere}--quantize int8, a smaller model, or a larger {flag} if the machine has it"
    )
