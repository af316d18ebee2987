"""One decode step of some slots: run as it is once, then captured, then launched again and again.

A step reads each slot's last token from the device's memory, runs the decoder, and leaves the next
token where the following step finds it. Copies of streamed weights are part of the step.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from martlet.engine.sampler import Chances
from martlet.kernels import ops
from martlet.kernels.sample_state import SETTINGS, SampleState
from martlet.kernels.step_state import StepState
from martlet.layers.decoder_cache import DecoderCache
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture

__all__ = ["Choice", "StepGraphs", "set_chances"]

Choice = Literal["most_probable", "sampled", "none"]
"""How a step finds the token that the next one reads; "none": the caller feeds it."""

# Ending tokens that a captured step has room for; no model has as many.
_USUAL_ENDING_IDS = 8
_NO_TOKEN = -1


class StepGraphs:
    """The decode step of the slots of a cache that is stepping, one graph a kind of choice.

    Everything that a step reads lies in ``state``, ``suppressed`` and ``chances``; it may be
    changed between two steps. ``chances`` is needed for the choice "sampled" alone and must stay
    the same from its first step on. ``pool`` lets several graphs that never run at the same
    time share their memory.

    Shapes:
        suppressed: (vocab_size,) or (num_slots, vocab_size) bool, True = must not be chosen
    """

    def __init__(
        self,
        architecture: Architecture,
        executor: Executor,
        cache: DecoderCache,
        state: StepState,
        suppressed: Tensor,
        pool: Any = None,
    ) -> None:
        self._architecture = architecture
        self._executor = executor
        self._cache = cache
        self._state = state
        self._suppressed = suppressed
        self._pool = pool
        self.chances: SampleState | None = None
        self._ending_ids = self._room_for_ending_ids(_USUAL_ENDING_IDS)
        self._graphs: dict[Choice, torch.cuda.CUDAGraph] = {}
        self._graph_logits: dict[Choice, Tensor] = {}
        self._has_run: set[Choice] = set()
        self.logits = torch.empty(0)
        """Logits of the step that was launched last, (num_slots, vocab_size) float32; the next step
        may use their memory again."""

    def end_at(self, ending_ids: list[int]) -> None:
        """Mark a slot as done after one of these tokens, from the next step on."""
        if len(ending_ids) > self._ending_ids.shape[0]:
            self._graphs.clear()  # how many there are is part of a captured step
            self._ending_ids = self._room_for_ending_ids(len(ending_ids))
        room = [_NO_TOKEN] * (self._ending_ids.shape[0] - len(ending_ids))
        self._ending_ids.copy_(torch.tensor([*ending_ids, *room], dtype=torch.int32))

    def launch(self, choice: Choice) -> None:
        """Start one step; returns before it has run. The executor must be primed."""
        graph = self._graphs.get(choice)
        if graph is None and self._executor.is_capturable and choice in self._has_run:
            graph = self._graphs[choice] = self._capture(choice)
        if graph is None:
            self._step(choice)
            self._has_run.add(choice)
        else:
            self.logits = self._graph_logits[choice]
            graph.replay()

    def _step(self, choice: Choice) -> None:
        executor, architecture, state = self._executor, self._architecture, self._state
        # Attention looks at lengths and keys ahead of its turn: the step before must have ended.
        ops.break_launch_chain()
        fixed = executor.fixed()
        rows = state.token_ids[:, None]  # (num_slots, 1)
        hidden, shared = architecture.embed(fixed, "decoder", rows, self._cache)
        for index, weights in executor.blocks("decode"):
            hidden = architecture.block("decoder", index, weights, hidden, shared, self._cache)
        logits = architecture.head(fixed, "decoder", hidden)[:, 0]
        if choice == "most_probable":
            ops.most_probable(logits, self._suppressed, state)
        elif choice == "sampled":
            assert self.chances is not None
            ops.sample(logits, self._suppressed, self.chances, state)
        ops.finish_step(state, self._ending_ids)
        self.logits = logits

    def _capture(self, choice: Choice) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self._executor.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._executor.device))
        with torch.cuda.stream(stream):
            # Other threads may go on using the device.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                self._step(choice)
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._executor.device).wait_stream(stream)
        self._graph_logits[choice] = self.logits
        return graph

    def _room_for_ending_ids(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.int32, device=self._executor.device)


def set_chances(state: SampleState, slot: int, chances: Chances) -> None:
    """Let a slot choose its next tokens as its sampler would."""
    settings = [float(getattr(chances.params, name)) for name in SETTINGS]
    state.settings[slot].copy_(torch.tensor(settings, dtype=torch.float64))
    state.output_counts[slot].copy_(chances.output_counts)
    state.seen[slot].copy_(chances.seen)
    num_uniforms = min(len(chances.uniforms), state.uniforms.shape[1])
    state.uniforms[slot, :num_uniforms].copy_(chances.uniforms[:num_uniforms])
    state.num_drawn[slot] = 0
