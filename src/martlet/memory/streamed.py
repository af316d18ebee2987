"""Carries out a plan for a GPU: some parts stay in its memory, the others pass through slots.

While a part is computed with, the next one is copied into the other slot, on a stream of its own.
Decode steps keep one promise between them: the first streamed part of a step already lies in slot
0 when the step begins, because the step before copied it during its last blocks. So the link
rests for no longer than a launch takes, and a step can be captured into a graph that is launched
again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from martlet.device.host import HostBuffer, StagingRing
from martlet.device.size import format_bytes
from martlet.errors import CapacityError
from martlet.kernels import ops
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.layout import PartLayout, PartSource, view_part
from martlet.memory.parts import aligned, block_index, stack_of
from martlet.memory.plan import BlockSize, Phase, Plan, make_plan
from martlet.memory.spread import NUM_SLOTS
from martlet.quantization.scheme import Weight

__all__ = ["StreamedExecutor", "load_streamed"]

_TRIES = 4
_NEXT_STEP = "use a smaller --gpu-memory, or close other programs"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Visit:
    """One block of a phase: its parts that are streamed, those that stay, and its number."""

    index: int
    streamed: tuple[PartLayout, ...]
    resident: Mapping[str, Weight]


def load_streamed(
    plan: Plan,
    layouts: Mapping[str, PartLayout],
    source: PartSource,
    device: torch.device,
    dtype: torch.dtype,
) -> StreamedExecutor:
    """The executor of a plan, or of one for less memory where the card has less than it said.

    Raises:
        CapacityError: not even a tenth less, three times, was there.
    """
    for _ in range(_TRIES - 1):
        try:
            return StreamedExecutor(plan, layouts, source, device, dtype)
        except CapacityError as error:
            torch.cuda.empty_cache()
            plan = _smaller(plan)
            _log.warning("%s; trying again with %s", error, format_bytes(plan.budget.gpu_bytes))
    return StreamedExecutor(plan, layouts, source, device, dtype)


def _smaller(plan: Plan) -> Plan:
    """The plan for a tenth less of GPU memory; what was resident waits in RAM instead."""
    sizes = [BlockSize(p.block, p.nbytes) for p in plan.phases[0].placements]
    budget = replace(plan.budget, gpu_bytes=plan.budget.gpu_bytes * 9 // 10)
    smaller = make_plan(
        sizes, plan.device, budget, plan.demand, plan.num_threads, plan.decode_threads
    )
    given = plan.prediction
    return smaller.predicted(given.work, given.bandwidth) if given else smaller


class StreamedExecutor:
    """The executor of a GPU, for any budget; with enough memory nothing is streamed.

    Raises:
        CapacityError: memory ran out although the plan said that it would not.
    """

    def __init__(
        self,
        plan: Plan,
        layouts: Mapping[str, PartLayout],
        source: PartSource,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        assert device.type == "cuda"
        self.plan = plan
        self.device = device
        self.dtype = dtype
        self._layouts = layouts
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._resident: dict[str, Mapping[str, Weight]] = {}
        self._host: dict[str, HostBuffer] = {}
        tiers = {p.block: p.tier for p in plan.phases[0].placements}
        resident = [layout for name, layout in layouts.items() if tiers[name] == "gpu"]
        with report_out_of_memory("loading weights", _NEXT_STEP):
            _limit_memory(plan, device)
            # One run of memory: the allocator would round up each part.
            sizes = [layout.nbytes for layout in resident] + [plan.slot_bytes] * plan.num_slots
            arena = torch.empty(sum(map(aligned, sizes)), dtype=torch.uint8, device=device)
            places = _divide(arena, sizes)
            self._slots = places[len(resident) :]
            for layout, memory in zip(resident, places, strict=False):
                source.fill(layout, memory)
                self._resident[layout.name] = view_part(layout, memory)
            for name, layout in layouts.items():
                if tiers[name] != "gpu":
                    buffer = self._host[name] = HostBuffer(layout.nbytes)
                    source.fill(layout, buffer.data)
        torch.cuda.synchronize(device)
        self._is_capturable = all([buffer.lock() for buffer in self._host.values()])
        self._ring: StagingRing | None = None
        if not self._is_capturable:
            _log.warning(
                "%s parts of the weights could not be page-locked: they are copied through a "
                "small ring, and decoding will be slower",
                sum(not buffer.is_locked for buffer in self._host.values()),
            )
            self._ring = StagingRing()
        self._visits = {phase.phase: self._visits_of(phase.phase) for phase in plan.phases}
        self._is_primed = False

    def _visits_of(self, phase: Phase) -> list[_Visit]:
        visits: dict[int, _Visit] = {}
        for name, layout in self._layouts.items():
            if stack_of(name) == "fixed" or not BlockSize(name, layout.nbytes).is_read_in(phase):
                continue
            index = block_index(name)
            have = visits.get(index, _Visit(index, (), {}))
            if name in self._resident:
                have = _Visit(index, have.streamed, {**have.resident, **self._resident[name]})
            else:
                have = _Visit(index, (*have.streamed, layout), have.resident)
            visits[index] = have
        return [visits[index] for index in sorted(visits)]

    @property
    def is_capturable(self) -> bool:
        """Whether every streamed part lies in page-locked memory."""
        return self._is_capturable

    def fixed(self) -> Mapping[str, Weight]:
        """The weights that belong to no layer."""
        return self._resident["fixed"]

    def blocks(self, phase: Phase) -> Iterator[tuple[int, Mapping[str, Weight]]]:
        """The blocks of a phase in order, each with its index; valid until the next one."""
        visits = self._visits[phase]
        if any(visit.streamed for visit in visits):
            return self._stream(visits, is_decode=phase == "decode")
        return ((visit.index, visit.resident) for visit in visits)

    def prime(self) -> None:
        """Make the promise of decode steps true: their first streamed part into slot 0.

        Every other phase breaks it. A captured step relies on it, so this must not be captured.
        """
        streamed = [visit for visit in self._visits["decode"] if visit.streamed]
        if streamed and not self._is_primed:
            # A pass that was given up may still be copying into that slot.
            torch.cuda.current_stream(self.device).wait_stream(self._copies)
            self._copy_in(streamed[0], 0)
            ops.break_launch_chain()
            self._is_primed = True

    def _stream(
        self, visits: Sequence[_Visit], is_decode: bool
    ) -> Iterator[tuple[int, Mapping[str, Weight]]]:
        streamed = [visit for visit in visits if visit.streamed]
        if is_decode:
            self.prime()
        self._is_primed = False
        compute = torch.cuda.current_stream(self.device)
        # Slots may still be read by what was launched before.
        self._copies.wait_stream(compute)
        ready: dict[int, torch.cuda.Event] = {}
        for number in range(1 if is_decode else 0, min(NUM_SLOTS, len(streamed))):
            ready[number] = self._start_copy(streamed[number], number)
        number = 0
        for visit in visits:
            if not visit.streamed:
                yield visit.index, visit.resident
                continue
            slot = number % NUM_SLOTS
            if number in ready:
                compute.wait_event(ready[number])
                # The next kernel must not look at weights before the copy has ended.
                ops.break_launch_chain()
            yield visit.index, {**visit.resident, **self._view(visit, slot)}
            following = number + NUM_SLOTS
            if following < len(streamed):
                self._copies.wait_stream(compute)
                ready[following] = self._start_copy(streamed[following], slot)
            elif is_decode and slot == 0:
                # The last use of slot 0 in this step: what the next step begins with comes in.
                self._copies.wait_stream(compute)
                self._start_copy(streamed[0], 0)
            number += 1
        if is_decode:
            compute.wait_stream(self._copies)
            ops.break_launch_chain()
            self._is_primed = True

    def _start_copy(self, visit: _Visit, slot: int) -> torch.cuda.Event:
        with torch.cuda.stream(self._copies):
            self._copy_in(visit, slot)
            event: torch.cuda.Event = self._copies.record_event()
            return event

    def _copy_in(self, visit: _Visit, slot: int) -> None:
        for layout, target in self._places(visit, slot):
            buffer = self._host[layout.name]
            if buffer.is_locked:
                target.copy_(buffer.data, non_blocking=True)
            else:
                assert self._ring is not None
                self._ring.copy(buffer.data, target)

    def _view(self, visit: _Visit, slot: int) -> dict[str, Weight]:
        weights: dict[str, Weight] = {}
        for layout, memory in self._places(visit, slot):
            weights.update(view_part(layout, memory))
        return weights

    def _places(self, visit: _Visit, slot: int) -> Iterator[tuple[PartLayout, Tensor]]:
        offset = 0
        for layout in visit.streamed:
            yield layout, self._slots[slot][offset : offset + layout.nbytes]
            offset += layout.nbytes


def _limit_memory(plan: Plan, device: torch.device) -> None:
    """Hold torch to the budget: it gives back what it caches before it takes more."""
    _, total_bytes = torch.cuda.mem_get_info(device)
    allowed_bytes = plan.budget.gpu_bytes - plan.demand.context_bytes
    index = torch.cuda.current_device() if device.index is None else device.index
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed_bytes / total_bytes), index)


def _divide(arena: Tensor, sizes: Sequence[int]) -> list[Tensor]:
    """Pieces of these sizes, each at an aligned place."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(arena[start : start + size])
        start += aligned(size)
    return pieces
