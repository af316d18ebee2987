"""Decode steps as one unit of work: captured once, launched token by token.

Each step leaves the next token where the following one finds it (see ``step_graphs.py``). So steps
can be launched one behind the other, and the host looks at the tokens when it likes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from martlet.engine.sampler import Chances
from martlet.engine.step_graphs import Choice, StepGraphs, set_chances
from martlet.kernels.sample_state import SampleState
from martlet.kernels.step_state import StepState
from martlet.layers.kv_cache import KVCache
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture

__all__ = ["DecodeLoop"]


class DecodeLoop:
    """The steps of all slots of one cache, which an encoder's output and a prompt have filled.

    Use: ``begin`` with the tokens that come next, ``launch`` steps, ``read`` or ``collect`` what
    they chose, ``end`` to hand the cache back; then again. The first step of a kind runs as it is,
    the second is captured where the executor allows it, all others are launches of that capture.
    """

    def __init__(
        self, architecture: Architecture, executor: Executor, cache: KVCache, max_steps: int
    ) -> None:
        self._architecture = architecture
        self._executor = executor
        self._cache = cache
        self._state = StepState.allocate(cache.steps.step_lengths, max_steps)
        self._chances: SampleState | None = None
        device = executor.device
        self._suppressed = torch.zeros(architecture.vocab_size, dtype=torch.bool, device=device)
        self.choice: Choice = "most_probable"
        self._graphs = StepGraphs(architecture, executor, cache, self._state, self._suppressed)
        self._events: list[torch.cuda.Event] = []
        self.num_launched = 0

    def begin(
        self,
        token_ids: Sequence[int],
        suppressed: Tensor | None = None,
        ending_ids: Sequence[int] = (),
        choice: Choice = "most_probable",
        chances: Sequence[Chances] = (),
    ) -> None:
        """Start with these tokens, one a slot; the cache holds everything before them.

        ``chances``, one a slot, is for the choice "sampled"; each has a uniform number for every
        step that will be launched. A slot stops at the first of ``ending_ids``.

        Shapes:
            suppressed: (vocab_size,) bool, tokens that are never chosen
        """
        state = self._state
        self.choice, self.num_launched = choice, 0
        self._events.clear()
        with torch.inference_mode():
            self._cache.begin_steps()
            for counter in (state.num_output, state.is_done, state.status):
                counter.zero_()
            self._graphs.end_at(sorted(ending_ids))
            if choice == "sampled":
                self._set_chances(chances)
        self.feed(token_ids)
        self.suppress(suppressed)

    def feed(self, token_ids: Sequence[int]) -> None:
        """Change which tokens, one a slot, the next step reads."""
        assert len(token_ids) == self._cache.num_slots
        with torch.inference_mode():
            self._state.token_ids.copy_(torch.tensor(token_ids))

    def suppress(self, suppressed: Tensor | None) -> None:
        """Change which tokens must not be chosen, from the next step on."""
        with torch.inference_mode():
            if suppressed is None:
                self._suppressed.zero_()
            else:
                self._suppressed.copy_(suppressed)

    def launch(self, num_steps: int) -> None:
        """Start so many more steps; returns before they have run."""
        assert self.num_launched + num_steps <= self._state.output_ids.shape[1]
        with torch.inference_mode():
            self._executor.prime()
            for _ in range(num_steps):
                self._launch_one()

    def read(self, number: int, slot: int = 0) -> tuple[int, float]:
        """The token that a slot chose in step ``number`` since ``begin``, and its log-probability.

        Waits for that step, not for those launched behind it. The slot must not have stopped
        before; the log-probability tells whether anything could be chosen, see ``ops.sample``.
        """
        assert number < self.num_launched
        if self._events:
            self._events[number].synchronize()
        state = self._state
        return int(state.output_ids[slot, number]), float(state.output_logprobs[slot, number])

    def collect(self) -> list[list[int]]:
        """All tokens of each slot that the steps have chosen; waits for the steps."""
        counts = self._state.num_output.tolist()
        rows = self._state.output_ids.tolist()
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    def logits(self) -> Tensor:
        """The logits of the last step that was launched, for a choice of "none".

        Shapes:
            return: (num_slots, vocab_size) float32, on the device; the caller's own
        """
        assert self.choice == "none", "other steps use that memory again"
        with torch.inference_mode():
            return self._graphs.logits.clone()

    def end(self, lengths: Sequence[int] | None = None) -> None:
        """Hand the cache back, with everything in it that the steps have read.

        ``lengths``, one a slot, keeps only so many tokens, where steps ran ahead of their reader;
        they may still run.
        """
        self._cache.end_steps(self._state.lengths.tolist() if lengths is None else lengths)
        self.num_launched = 0

    def __del__(self) -> None:
        # Steps that still run write into page-locked memory, which would be somebody else's.
        if getattr(self, "_events", None):
            self._events[-1].synchronize()

    def _launch_one(self) -> None:
        self._graphs.launch(self.choice)
        if self._executor.device.type == "cuda":
            self._events.append(torch.cuda.current_stream(self._executor.device).record_event())
        self.num_launched += 1

    def _set_chances(self, chances: Sequence[Chances]) -> None:
        num_slots, max_steps = self._state.output_ids.shape
        assert len(chances) == num_slots
        if self._chances is None:
            self._chances = self._graphs.chances = SampleState.allocate(
                num_slots, self._architecture.vocab_size, max_steps, self._executor.device
            )
        for slot, each in enumerate(chances):
            set_chances(self._chances, slot, each)
