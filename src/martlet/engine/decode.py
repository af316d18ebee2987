"""Decode steps as one unit of work: captured once, launched token by token.

A step reads each slot's last token from the device's memory, runs the decoder, and leaves the next
token where the following step finds it. So steps can be launched one behind the other, and the
host looks at the tokens when it likes. Copies of streamed weights are part of the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from martlet.kernels import ops
from martlet.kernels.step_state import StepState
from martlet.layers.kv_cache import KVCache
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture

__all__ = ["DecodeLoop"]


class DecodeLoop:
    """The steps of all slots of one cache, which an encoder's output and a prompt have filled.

    Use: ``begin`` with the tokens that come next, ``launch`` steps, ``collect`` what they chose,
    ``end`` to hand the cache back. The first step runs as it is, the second is captured where the
    executor allows it, all others are launches of that capture.
    """

    def __init__(
        self, architecture: Architecture, executor: Executor, cache: KVCache, max_steps: int
    ) -> None:
        self._architecture = architecture
        self._executor = executor
        self._cache = cache
        self._state = StepState.allocate(cache.step_lengths, max_steps)
        device = executor.device
        self._suppressed = torch.zeros(architecture.vocab_size, dtype=torch.bool, device=device)
        self._ending_ids = torch.zeros(0, dtype=torch.int32, device=device)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_launched = 0

    def begin(
        self,
        token_ids: Sequence[int],
        suppressed: Tensor | None = None,
        ending_ids: Sequence[int] = (),
    ) -> None:
        """Start with these tokens, one a slot; the cache holds everything before them.

        Shapes:
            suppressed: (vocab_size,) bool, tokens that are never chosen
        """
        state = self._state
        assert len(token_ids) == self._cache.num_slots
        self._cache.begin_steps()
        state.token_ids.copy_(torch.tensor(token_ids))
        for counter in (state.num_output, state.is_done, state.status):
            counter.zero_()
        self.suppress(suppressed)
        wanted = torch.tensor(sorted(ending_ids), dtype=torch.int32)
        if wanted.shape != self._ending_ids.shape:
            self._graph = None  # the number of ending tokens is part of the captured step
            self._ending_ids = wanted.to(self._executor.device)
        else:
            self._ending_ids.copy_(wanted)

    def suppress(self, suppressed: Tensor | None) -> None:
        """Change which tokens must not be chosen, from the next step on."""
        if suppressed is None:
            self._suppressed.zero_()
        else:
            self._suppressed.copy_(suppressed)

    def launch(self, num_steps: int) -> None:
        """Start so many more steps; returns before they have run."""
        assert self._num_launched + num_steps <= self._state.output_ids.shape[1]
        with torch.inference_mode():
            self._executor.prime()
            for _ in range(num_steps):
                if self._graph is not None:
                    self._graph.replay()
                elif self._num_launched == 0 or not getattr(self._executor, "is_capturable", False):
                    self._step()
                else:
                    self._graph = self._capture()
                    self._graph.replay()
                self._num_launched += 1

    def collect(self) -> list[list[int]]:
        """All tokens of each slot that the steps have chosen; waits for the steps."""
        counts = self._state.num_output.tolist()
        rows = self._state.output_ids.tolist()
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    def end(self) -> None:
        """Hand the cache back, with everything in it that the steps have read."""
        self._cache.end_steps(self._state.lengths.tolist())
        self._num_launched = 0

    def _step(self) -> None:
        executor, architecture, state = self._executor, self._architecture, self._state
        fixed = executor.fixed()
        rows = state.token_ids[:, None]  # (num_slots, 1)
        hidden, shared = architecture.embed(fixed, "decoder", rows, self._cache)
        for index, weights in executor.blocks("decode"):
            hidden = architecture.block("decoder", index, weights, hidden, shared, self._cache)
        logits = architecture.head(fixed, "decoder", hidden)[:, 0]
        ops.most_probable(logits, self._suppressed, state)
        ops.finish_step(state, self._ending_ids)

    def _capture(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream(self._executor.device)  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream(self._executor.device))
        with torch.cuda.stream(stream):
            graph.capture_begin()
            try:
                self._step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream(self._executor.device).wait_stream(stream)
        return graph
