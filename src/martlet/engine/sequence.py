"""One sequence on its way through a model: its cache, and the passes that fill it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from martlet.device.threads import cpu_threads
from martlet.engine.batch_limits import CHUNK_TOKENS
from martlet.engine.decode import DecodeLoop
from martlet.engine.passes import pass_threads, run_stack
from martlet.engine.sequence_memory import NEXT_STEP, SequenceMemory
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import Executor
from martlet.memory.plan import Phase
from martlet.models.architecture import Architecture, Stack

__all__ = ["RunningSequence"]


class RunningSequence:
    """The state of one sequence, with room for ``capacity_tokens`` tokens in the decoder.

    ``encoder_tokens`` is how many tokens its encoder will read, 0 for a decoder-only model.
    ``memory`` is what it runs in, with at least that room and an empty cache; None makes some that
    just fits. With ``uses_steps``, by default on a GPU, single tokens after the first pass are
    decode steps that were captured once.

    Raises:
        CapacityError: the cache does not fit into memory.
    """

    def __init__(
        self,
        architecture: Architecture,
        executor: Executor,
        capacity_tokens: int,
        encoder_tokens: int = 0,
        memory: SequenceMemory | None = None,
        uses_steps: bool | None = None,
    ) -> None:
        self._architecture = architecture
        self._executor = executor
        self.capacity_tokens = capacity_tokens
        self.num_tokens = 0
        self.uses_steps = executor.device.type == "cuda" if uses_steps is None else uses_steps
        self.memory = memory or SequenceMemory(
            architecture, executor, capacity_tokens, encoder_tokens
        )
        self._cache = self.memory.cache

    @property
    def free_tokens(self) -> int:
        """Tokens that the cache can still take."""
        return self.capacity_tokens - self.num_tokens

    @property
    def is_stepping(self) -> bool:
        """Whether decode steps go on with it for now."""
        return self._cache.is_stepping

    def encode(self, token_ids: Sequence[int]) -> None:
        """Run the encoder once; the decoder passes of this sequence attend to the result."""
        with (
            report_out_of_memory(f"encoding {len(token_ids):,} tokens", NEXT_STEP),
            self._threads(token_ids),
            torch.inference_mode(),
        ):
            hidden = self._run_stack("encoder", token_ids)
            hidden = self._architecture.head(self._executor.fixed(), "encoder", hidden)
            lengths = torch.tensor([len(token_ids)], device=self._executor.device)
            self._cache.set_encoder_output(hidden, lengths)

    def advance(self, token_ids: Sequence[int], last_only: bool = True) -> Tensor:
        """Run the decoder over more tokens; the logits of what follows each (or only the last).

        On a CPU, for the last alone, many tokens are read in the chunks of a batch.

        Shapes:
            return: (num_tokens or 1, vocab_size) float32
        """
        assert 0 < len(token_ids) <= self.free_tokens, "the cache was made too small"
        if self.uses_steps and self.num_tokens and len(token_ids) == 1:
            return self._step(token_ids)
        self.end_steps()
        if last_only and self._executor.device.type == "cpu" and len(token_ids) > CHUNK_TOKENS:
            self._read(token_ids[:CHUNK_TOKENS])
            return self.advance(token_ids[CHUNK_TOKENS:])
        hidden = self._read(token_ids)
        if last_only:
            token_ids, hidden = token_ids[-1:], hidden[:, -1:]
        with (
            report_out_of_memory(f"choosing after {self.num_tokens:,} tokens", NEXT_STEP),
            self._threads(token_ids),
            torch.inference_mode(),
        ):
            return self._architecture.head(self._executor.fixed(), "decoder", hidden)[0]

    def _read(self, token_ids: Sequence[int]) -> Tensor:
        """Run the decoder over more tokens; its last hidden state, (1, num_tokens, hidden_size)."""
        with (
            report_out_of_memory(f"reading {len(token_ids):,} tokens", NEXT_STEP),
            self._threads(token_ids),
            torch.inference_mode(),
        ):
            hidden = self._run_stack("decoder", token_ids)
        self.num_tokens += len(token_ids)
        return hidden

    def begin_steps(self) -> DecodeLoop:
        """The steps that go on with this sequence, ready for their ``begin``.

        Whoever runs them counts in ``num_tokens`` what they have read and was wanted; the next
        pass, or ``end_steps``, forgets all beyond.
        """
        assert self.num_tokens, "the first pass is no step"
        self.end_steps()
        return self.memory.loop

    def end_steps(self) -> None:
        """Go on without steps."""
        if self._cache.is_stepping:
            self.memory.loop.end([self.num_tokens])

    def _step(self, token_ids: Sequence[int]) -> Tensor:
        """One token by a decode step: the logits after it, (1, vocab_size)."""
        with report_out_of_memory("reading a token", NEXT_STEP), self._threads(token_ids):
            loop = self.memory.loop
            if self._cache.is_stepping and loop.choice == "none":
                loop.feed(token_ids)
            else:
                self.begin_steps().begin(token_ids, choice="none")
            loop.launch(1)
            self.num_tokens += 1
            return loop.logits()

    def _run_stack(self, stack: Stack, token_ids: Sequence[int]) -> Tensor:
        rows = torch.tensor([list(token_ids)], device=self._executor.device)  # (1, num_tokens)
        cache = self._cache if stack == "decoder" else None
        return run_stack(self._architecture, self._executor, self._phase(stack), rows, cache)

    def _phase(self, stack: Stack) -> Phase:
        if stack == "encoder":
            return "encode"
        return "prefill" if self.num_tokens == 0 else "decode"

    def _threads(self, token_ids: Sequence[int]) -> AbstractContextManager[None]:
        return cpu_threads(pass_threads(self._executor, len(token_ids)))
