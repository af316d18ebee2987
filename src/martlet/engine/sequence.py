"""One sequence on its way through a model: its cache, and the passes that fill it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from martlet.device.threads import cpu_threads
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import Executor
from martlet.memory.plan import Phase
from martlet.models.architecture import Architecture, Stack

__all__ = ["RunningSequence"]

# A pass over so few tokens is bound by reading the weights, as a single decode step is.
_DECODE_TOKENS = 8
_NEXT_STEP = "use a shorter text, fewer tokens, or a machine with more memory"


class RunningSequence:
    """The state of one sequence, with room for ``capacity_tokens`` tokens in the decoder.

    ``encoder_tokens`` is how many tokens its encoder will read, 0 for a decoder-only model.

    Raises:
        CapacityError: the cache does not fit into memory.
    """

    def __init__(
        self,
        architecture: Architecture,
        executor: Executor,
        capacity_tokens: int,
        encoder_tokens: int = 0,
    ) -> None:
        self._architecture = architecture
        self._executor = executor
        self.capacity_tokens = capacity_tokens
        self.num_tokens = 0
        like = torch.empty(0, dtype=executor.dtype, device=executor.device)
        with (
            report_out_of_memory(f"making a cache of {capacity_tokens:,} tokens", _NEXT_STEP),
            torch.inference_mode(),
        ):
            self._cache = architecture.new_cache(1, capacity_tokens, like, encoder_tokens)

    @property
    def free_tokens(self) -> int:
        """Tokens that the cache can still take."""
        return self.capacity_tokens - self.num_tokens

    def encode(self, token_ids: Sequence[int]) -> None:
        """Run the encoder once; the decoder passes of this sequence attend to the result."""
        with (
            report_out_of_memory(f"encoding {len(token_ids):,} tokens", _NEXT_STEP),
            self._threads(token_ids),
            torch.inference_mode(),
        ):
            hidden = self._run_stack("encoder", token_ids)
            hidden = self._architecture.head(self._executor.fixed(), "encoder", hidden)
            lengths = torch.tensor([len(token_ids)], device=self._executor.device)
            self._cache.set_encoder_output(hidden, lengths)

    def advance(self, token_ids: Sequence[int], last_only: bool = True) -> Tensor:
        """Run the decoder over more tokens; the logits of what follows each (or only the last).

        Shapes:
            return: (num_tokens or 1, vocab_size) float32
        """
        assert 0 < len(token_ids) <= self.free_tokens, "the cache was made too small"
        with (
            report_out_of_memory(f"reading {len(token_ids):,} tokens", _NEXT_STEP),
            self._threads(token_ids),
            torch.inference_mode(),
        ):
            hidden = self._run_stack("decoder", token_ids)
            self.num_tokens += len(token_ids)
            if last_only:
                hidden = hidden[:, -1:]
            return self._architecture.head(self._executor.fixed(), "decoder", hidden)[0]

    def _run_stack(self, stack: Stack, token_ids: Sequence[int]) -> Tensor:
        cache = self._cache if stack == "decoder" else None
        executor = self._executor
        rows = torch.tensor([list(token_ids)], device=executor.device)  # (1, num_tokens)
        hidden, step = self._architecture.embed(executor.fixed(), stack, rows, cache)
        for index, weights in executor.blocks(self._phase(stack)):
            hidden = self._architecture.block(stack, index, weights, hidden, step, cache)
        return hidden

    def _phase(self, stack: Stack) -> Phase:
        if stack == "encoder":
            return "encode"
        return "prefill" if self.num_tokens == 0 else "decode"

    def _threads(self, token_ids: Sequence[int]) -> AbstractContextManager[None]:
        plan = self._executor.plan
        is_decode = len(token_ids) <= _DECODE_TOKENS
        return cpu_threads(plan.decode_threads if is_decode else plan.num_threads)
