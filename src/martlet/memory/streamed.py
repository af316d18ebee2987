"""Carries out a plan for a GPU: some parts stay in its memory, the others pass through slots.

While a part is computed with, the next one is copied into the other slot, on a stream of its own.
Decode steps keep one promise between them: the first streamed part of a step already lies in slot
0 when the step begins, because the step before copied it during its last blocks. So the link is
never idle, and a step can be captured into a graph that is launched again and again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.device.host import HostBuffer, StagingRing
from martlet.kernels import ops
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.layout import PartLayout, PartSource, view_part
from martlet.memory.plan import Phase, Plan
from martlet.memory.spread import NUM_SLOTS
from martlet.quantization.scheme import Weight

__all__ = ["StreamedExecutor"]

_NEXT_STEP = "use a smaller --gpu-memory, or close other programs"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Visit:
    """One block of a phase: its parts that are streamed, those that stay, and its number."""

    index: int
    streamed: tuple[PartLayout, ...]
    resident: Mapping[str, Weight]


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
        with report_out_of_memory(
            "loading weights", "use a smaller --gpu-memory, or close programs"
        ):
            slots = [plan.slot_bytes] * plan.num_slots
            self._slots = [torch.empty(n, dtype=torch.uint8, device=device) for n in slots]
            tiers = {p.block: p.tier for p in plan.phases[0].placements}
            for name, layout in layouts.items():
                self._place(layout, source, is_resident=tiers[name] == "gpu")
        torch.cuda.synchronize(device)
        self._is_capturable = all([buffer.lock() for buffer in self._host.values()])
        self._ring: StagingRing | None = None
        if not self._is_capturable:
            _log.warning(
                "%s of weights could not be page-locked: they are copied through a small ring, "
                "and decoding will be slower",
                sum(not buffer.is_locked for buffer in self._host.values()),
            )
            self._ring = StagingRing(device)
        self._visits = {phase.phase: self._visits_of(phase.phase) for phase in plan.phases}
        self._is_primed = False

    def _place(self, layout: PartLayout, source: PartSource, is_resident: bool) -> None:
        if is_resident:
            memory = torch.empty(layout.nbytes, dtype=torch.uint8, device=self.device)
            source.fill(layout, memory)
            self._resident[layout.name] = view_part(layout, memory)
        else:
            buffer = self._host[layout.name] = HostBuffer(layout.nbytes)
            source.fill(layout, buffer.data)

    def _visits_of(self, phase: Phase) -> list[_Visit]:
        stack = "encoder" if phase == "encode" else "decoder"
        visits: dict[int, _Visit] = {}
        for name, layout in self._layouts.items():
            block, _, rest = name.partition(".")
            if block != stack or (phase == "decode" and name.endswith(".once")):
                continue
            index = int(rest.partition(".")[0])
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
