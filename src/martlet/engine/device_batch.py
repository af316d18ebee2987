"""Decode steps of a batch where the model runs: captured once for a number of slots.

Texts join and leave between steps. What a slot needs (its last token, length, mask, sampling
parameters, random numbers) is written into the device's memory when it joins; after that a step is
one launch for all, and the host reads what was chosen. While no slot's next choice depends on what
the host makes of the last one, the next step is launched before that is read.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from martlet.engine.request import Request, Suppress, constraint_error
from martlet.engine.sampler import Sample, Sampler, top_tokens
from martlet.engine.sequence_memory import NEXT_STEP
from martlet.engine.step_graphs import Choice, StepGraphs, set_chances
from martlet.errors import MartletError
from martlet.kernels.sample_state import SampleState
from martlet.kernels.step_state import StepState
from martlet.layers.kv_cache import KVCache
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture

__all__ = ["DeviceBatchSteps"]

_CHOICES: tuple[Choice, ...] = ("most_probable", "sampled")

# Steps that the device does while the host prepares the first pass of a text, which takes it some
# 30 ms for 24 + 24 layers. Where weights are streamed the link is busy with that pass anyway, and
# steps in front of it would only be in its way.
_MOST_STEPS_AHEAD = 6


@dataclass(eq=False)
class _Slot:
    """A text that is being written; counts are of what was launched for it."""

    request: Request
    sampler: Sampler
    num_tokens: int  # in the cache
    num_chosen: int = 0
    fed: int | None = None  # token that it reads next instead of its own choice
    has_mask: bool = False
    failure: MartletError | None = None  # of its constraint

    @property
    def is_looked_at(self) -> bool:
        """Whether the host must see each token before the next one is chosen."""
        return not isinstance(self.request.constraint, Suppress) or self.request.top_logprobs > 0


@dataclass(frozen=True, eq=False)
class _Launch:
    """A step that runs: the number of each slot's choice in it, and its logits."""

    places: dict[int, tuple[_Slot, int]]
    logits: Tensor
    event: torch.cuda.Event | None


class DeviceBatchSteps:
    """See ``BatchSteps``. The slots of ``cache`` step in groups of 1, 2, 4, ... from the first on.

    Raises:
        CapacityError: there is no memory for the state of the slots.
    """

    def __init__(self, architecture: Architecture, executor: Executor, cache: KVCache) -> None:
        self._architecture = architecture
        self._executor = executor
        self._cache = cache
        device, num_slots = executor.device, cache.num_slots
        self._slots: dict[int, _Slot] = {}
        self._running: deque[_Launch] = deque()
        with report_out_of_memory("preparing decode steps", NEXT_STEP), torch.inference_mode():
            self._state = StepState.allocate(cache.steps.step_lengths, cache.max_tokens)
            self._state.is_done.fill_(1)
            self._suppressed = torch.zeros(
                num_slots, architecture.vocab_size, dtype=torch.bool, device=device
            )
            self._chances = SampleState.allocate(
                num_slots, architecture.vocab_size, cache.max_tokens, device
            )
            self._chances.settings[:] = torch.tensor([0.0, 0, 1, 0, 1, 0, 0])
            pool: Any = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
            self._graphs = {size: self._graphs_of(size, pool) for size in _sizes(num_slots)}

    def warm_up(self) -> None:
        """Compile and capture every step now, so that no text has to wait for that."""
        assert not self._slots
        with report_out_of_memory("preparing decode steps", NEXT_STEP), torch.inference_mode():
            for graphs in self._graphs.values():
                for choice in _CHOICES:
                    for _ in range(2):  # as it is, then captured
                        self._executor.prime()
                        graphs.launch(choice)
        if self._executor.device.type == "cuda":
            torch.cuda.synchronize(self._executor.device)

    def add(self, slot: int, token_id: int, request: Request, sampler: Sampler) -> None:
        """The slot goes on with a token that its cache does not hold yet."""
        assert slot not in self._slots
        state, cache = self._state, self._cache
        num_tokens = cache.lengths[slot]
        with torch.inference_mode():
            cache.steps.begin(slot)
            state.num_output[slot] = 0
            state.is_done[slot] = 0
        self._slots[slot] = _Slot(request, sampler, num_tokens, fed=token_id)

    def feed(self, slot: int, token_id: int) -> None:
        """The slot reads this token next instead of the one chosen for it."""
        assert not self._running, "a slot that is fed is looked at"
        self._slots[slot].fed = token_id

    def remove(self, slot: int) -> None:
        """The slot rests; a step that runs ahead for it changes nothing that is read."""
        del self._slots[slot]
        with torch.inference_mode():
            self._state.is_done[slot] = 1
            self._cache.steps.rest(slot)

    def keep_busy(self) -> None:
        """Launch some steps ahead, for the host has something else to do."""
        if not self._slots or self._executor.plan.streamed_bytes("decode"):
            return
        with report_out_of_memory("decoding", NEXT_STEP), torch.inference_mode():
            self._write_changes()
            while len(self._running) < _MOST_STEPS_AHEAD and self._may_run_ahead():
                self._launch()

    def run(self) -> dict[int, Sample | MartletError]:
        """One more token for every slot, but for those that joined while a step was running ahead.

        Raises:
            CapacityError: memory ran out.
        """
        with report_out_of_memory("decoding", NEXT_STEP), torch.inference_mode():
            if not self._slots:
                return {}
            self._write_changes()
            if not self._running:
                self._launch()
            if len(self._running) == 1 and self._may_run_ahead():
                self._launch()
            launch = self._running.popleft()
            if launch.event is not None:
                launch.event.synchronize()
            chosen = {}
            for slot, (text, place) in launch.places.items():
                if self._slots.get(slot) is text:
                    chosen[slot] = self._read(slot, text, place, launch.logits)
        return chosen

    def __del__(self) -> None:
        # Steps that still run write into page-locked memory, which would be somebody else's.
        for launch in getattr(self, "_running", ()):
            if launch.event is not None:
                launch.event.synchronize()

    def _graphs_of(self, num_slots: int, pool: Any) -> StepGraphs:
        graphs = StepGraphs(
            self._architecture,
            self._executor,
            self._cache.steps.first(num_slots),
            self._state.first(num_slots),
            self._suppressed[:num_slots],
            pool,
        )
        graphs.chances = self._chances.first(num_slots)
        graphs.end_at([])
        return graphs

    def _write_changes(self) -> None:
        for slot, text in self._slots.items():
            if text.fed is not None:
                self._state.token_ids[slot] = text.fed
                room_tokens = self._cache.max_tokens - text.num_tokens
                set_chances(self._chances, slot, text.sampler.chances(room_tokens))
                text.fed = None
            if text.is_looked_at or not text.has_mask:
                self._suppress(slot, text)

    def _suppress(self, slot: int, text: _Slot) -> None:
        try:
            suppressed = text.request.constraint.suppressed()
        except Exception as error:  # a constraint is somebody else's code
            text.failure = constraint_error(error)
            return
        if suppressed is None:
            self._suppressed[slot].zero_()
        else:
            self._suppressed[slot].copy_(suppressed)
        text.has_mask = True

    def _launch(self) -> None:
        num_slots = next(size for size in self._graphs if size > max(self._slots))
        is_plain = all(text.sampler.is_plain for text in self._slots.values())
        self._executor.prime()
        graphs = self._graphs[num_slots]
        graphs.launch("most_probable" if is_plain else "sampled")
        places = {}
        for slot, text in self._slots.items():
            assert text.num_tokens < self._cache.max_tokens, "the slot is full"
            places[slot] = (text, text.num_chosen)
            text.num_tokens += 1
            text.num_chosen += 1
        device = self._executor.device
        is_gpu = device.type == "cuda"
        event = torch.cuda.current_stream(device).record_event() if is_gpu else None
        self._running.append(_Launch(places, graphs.logits, event))

    def _may_run_ahead(self) -> bool:
        return all(
            not text.is_looked_at and text.num_tokens < self._cache.max_tokens
            for text in self._slots.values()
        )

    def _read(self, slot: int, text: _Slot, place: int, logits: Tensor) -> Sample | MartletError:
        state = self._state
        self._cache.steps.count(slot)
        if text.failure is not None:
            return text.failure
        try:
            sample = text.sampler.take(
                int(state.output_ids[slot, place]), float(state.output_logprobs[slot, place])
            )
        except MartletError as error:
            return error
        num_top = text.request.top_logprobs
        return sample if num_top == 0 else sample.with_top(top_tokens(logits[slot], num_top))


def _sizes(num_slots: int) -> list[int]:
    """1, 2, 4, ... below a number of slots, and that number."""
    sizes = [1 << power for power in range(num_slots.bit_length()) if 1 << power < num_slots]
    return [*sizes, num_slots]
