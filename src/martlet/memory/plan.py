"""Where each part of the weights lives and where it is computed, decided before anything is loaded.

Pure: sizes and budgets go in, a frozen value comes out, no device is touched. So plans can be
made, shown and tested for machines that nobody owns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from martlet.device.size import format_bytes, whole_mib
from martlet.errors import CapacityError
from martlet.memory.parts import (
    BlockSize,
    Budget,
    Demand,
    DeviceKind,
    Phase,
    PhasePlan,
    Placement,
    Tier,
    narrower_hint,
    stack_of,
)
from martlet.memory.prediction import Bandwidth, Prediction, Work, predict
from martlet.memory.spread import NUM_SLOTS, spread_parts

__all__ = [
    "Bandwidth",
    "BlockSize",
    "Budget",
    "Demand",
    "DeviceKind",
    "Phase",
    "PhasePlan",
    "Placement",
    "Plan",
    "Prediction",
    "Tier",
    "Work",
    "make_plan",
]

# The operations of a decode step over less than this last microseconds, no longer than threads take
# to meet after each one; and when another program holds a core, they wait for it every time:
# measured on 2 cores with the 24 MB models, 126 tokens/s with one thread and 6 with two.
_ONE_THREAD_BYTES = 64 << 20
_WEIGHTS_ALONE = Demand()


@dataclass(frozen=True)
class Plan:
    """The placement in force: what an executor obeys and what a user is shown.

    Attributes:
        phases: all parts in each phase, on the same tier in all of them.
        demand: memory beside the weights.
        budget: what was allowed.
        num_threads: threads of the CPU that read a prompt.
        decode_threads: threads of the CPU that compute a single token.
        num_slots: pieces of GPU memory through which streamed parts pass; 0 when none is streamed.
        slot_bytes: size of each; holds any streamed part, and a streamed decoder block together
            with its streamed "once" part behind it.
        prediction: the times to expect, where rates of the machine were given.
    """

    device: DeviceKind
    phases: tuple[PhasePlan, ...]
    demand: Demand
    budget: Budget
    num_threads: int
    decode_threads: int
    num_slots: int = 0
    slot_bytes: int = 0
    prediction: Prediction | None = None

    @property
    def compute_tier(self) -> Tier:
        """The tier where hidden states, the KV cache and the workspace live."""
        return "gpu" if self.device == "cuda" else "ram"

    @property
    def slots_bytes(self) -> int:
        """GPU memory of all slots together."""
        return self.num_slots * self.slot_bytes

    @property
    def seconds_per_token(self) -> float | None:
        """Predicted time of a decode step of one sequence."""
        return self.prediction.seconds_per_token if self.prediction else None

    @property
    def time_to_first_token_seconds(self) -> float | None:
        """Predicted time from the prompt's ids to the first token."""
        return self.prediction.time_to_first_token_seconds if self.prediction else None

    def predicted(self, work: Work, bandwidth: Bandwidth) -> Plan:
        """The same plan with the times to expect on a machine of these rates."""
        return replace(self, prediction=predict(self.phases, self.device, work, bandwidth))

    def streamed(self, phase: Phase) -> tuple[str, ...]:
        """Names of the parts that are copied to the GPU in a phase, in the order they run."""
        return tuple(placement.block for placement in self._phase(phase).streamed())

    def streamed_bytes(self, phase: Phase) -> int:
        """Bytes that are copied to the GPU each time a phase runs."""
        return sum(placement.nbytes for placement in self._phase(phase).streamed())

    def weight_bytes(self, tier: Tier) -> int:
        """Most bytes of weights that a tier holds in any phase, without slots."""
        return max(phase.weight_bytes(tier) for phase in self.phases)

    def total_bytes(self, tier: Tier) -> int:
        """Most bytes of everything that a tier holds in any phase."""
        beside_weights = self.demand.total_bytes + self.slots_bytes
        return self.weight_bytes(tier) + (beside_weights if tier == self.compute_tier else 0)

    def describe(self) -> str:
        """One line for people: where the weights live and what computes."""
        placements = self.phases[0].placements
        if self.num_slots:
            num_waiting = sum(p.tier != "gpu" for p in placements)
            return (
                f"{len(placements) - num_waiting} of {len(placements)} blocks, "
                f"{format_bytes(self.weight_bytes('gpu'))}, in GPU memory, "
                f"{num_waiting}, {format_bytes(self.weight_bytes('ram'))}, streamed from RAM; "
                "computed on the GPU"
            )
        where = f"all {len(placements)} blocks, {format_bytes(sum(p.nbytes for p in placements))}"
        if self.device == "cuda":
            return f"{where}, in GPU memory; computed on the GPU"
        threads = "1 thread" if self.decode_threads == 1 else f"{self.decode_threads} threads"
        return f"{where}, in RAM; computed on the CPU with {threads}"

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
            "num_slots": self.num_slots,
            "slot_bytes": self.slot_bytes,
            "total_bytes": {tier: self.total_bytes(tier) for tier in tiers},
            "streamed_bytes": {p.phase: self.streamed_bytes(p.phase) for p in self.phases},
            "seconds_per_token": self.seconds_per_token,
            "time_to_first_token_seconds": self.time_to_first_token_seconds,
            "predicted_for": self.prediction
            and {**asdict(self.prediction.work), **asdict(self.prediction.bandwidth)},
            "phases": {
                phase.phase: [asdict(placement) for placement in phase.placements]
                for phase in self.phases
            },
        }

    def _phase(self, name: Phase) -> PhasePlan:
        return next(phase for phase in self.phases if phase.phase == name)


def make_plan(
    blocks: Sequence[BlockSize],
    device: DeviceKind,
    budget: Budget,
    demand: Demand = _WEIGHTS_ALONE,
    num_threads: int = 1,
    decode_threads: int | None = None,
) -> Plan:
    """The plan that copies the fewest bytes within a budget.

    For the GPU, parts that do not fit into its memory wait in RAM and are streamed; the CPU
    computes from RAM. A model with "encoder." parts is planned for three phases, any other for two.
    ``decode_threads`` None is the planner's choice: all, but one for a small model.

    Raises:
        CapacityError: the model does not fit; names each amount, and how many MiB are missing,
            rounded up.
    """
    assert len({block.name for block in blocks}) == len(blocks), "a part is named twice"
    streamed: frozenset[str] = frozenset()
    slot_bytes = 0
    if device == "cuda":
        layout = spread_parts(blocks, budget, demand)
        streamed, slot_bytes = layout.streamed, layout.slot_bytes
    has_encoder = any(stack_of(block.name) == "encoder" for block in blocks)
    names: tuple[Phase, ...] = ("prefill", "decode")
    if has_encoder:
        names = ("encode", *names)
    plan = Plan(
        device=device,
        phases=tuple(_phase_plan(phase, blocks, device, streamed) for phase in names),
        demand=demand,
        budget=budget,
        num_threads=num_threads,
        decode_threads=decode_threads or _useful_decode_threads(blocks, num_threads),
        num_slots=NUM_SLOTS if streamed else 0,
        slot_bytes=slot_bytes,
    )
    if device == "cpu":
        _require_ram(plan, narrower_hint(blocks))
    return plan


def _useful_decode_threads(blocks: Sequence[BlockSize], num_threads: int) -> int:
    small = sum(block.nbytes for block in blocks) < _ONE_THREAD_BYTES
    return 1 if small else num_threads


def _phase_plan(
    phase: Phase, blocks: Sequence[BlockSize], device: DeviceKind, streamed: frozenset[str]
) -> PhasePlan:
    processor: Literal["gpu", "cpu"] = "gpu" if device == "cuda" else "cpu"
    return PhasePlan(
        phase,
        tuple(
            Placement(
                block=block.name,
                nbytes=block.nbytes,
                tier="ram" if device == "cpu" or block.name in streamed else "gpu",
                computed_on=processor if block.is_read_in(phase) else None,
            )
            for block in blocks
        ),
    )


def _require_ram(plan: Plan, narrower: str) -> None:
    needed_bytes, available_bytes = plan.total_bytes("ram"), plan.budget.ram_bytes
    if needed_bytes <= available_bytes:
        return
    raise CapacityError(
        f"the model needs {format_bytes(needed_bytes)} of RAM "
        f"(weights {format_bytes(plan.weight_bytes('ram'))}, "
        f"KV cache {format_bytes(plan.demand.kv_cache_bytes)}, "
        f"workspace {format_bytes(plan.demand.workspace_bytes)}) "
        f"and {format_bytes(available_bytes)} may be used: "
        f"{whole_mib(needed_bytes - available_bytes)} MiB are missing; "
        f"use {narrower}a smaller model, or a larger --ram if the machine has it"
    )
