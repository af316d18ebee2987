"""The memory that one sequence runs in on a device, kept for the next one."""

from __future__ import annotations

import torch

from martlet.engine.decode import DecodeLoop
from martlet.layers.kv_cache import KVCache
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture

__all__ = ["ENCODER_TOKENS_AT_ONCE", "NEXT_STEP", "SequenceMemory"]

NEXT_STEP = "use a shorter text, fewer tokens, or a machine with more memory"

# Sizes are whole numbers of these. They follow from the request alone, never from what ran before:
# attention divides its work by them, so another size may round a logit differently.
_USUAL_TOKENS = 512
_MOST_TOKENS_AT_ONCE = 2048
ENCODER_TOKENS_AT_ONCE = 128


class SequenceMemory:
    """The cache of a sequence and its decode steps, which are captured once for this memory.

    It has room for ``capacity_tokens`` in the decoder and ``encoder_tokens`` in the encoder; with
    ``is_lasting`` for more, so that most sequences of a model fit in.

    Raises:
        CapacityError: the cache does not fit into memory.
    """

    def __init__(
        self,
        architecture: Architecture,
        executor: Executor,
        capacity_tokens: int,
        encoder_tokens: int,
        is_lasting: bool = False,
    ) -> None:
        self._architecture = architecture
        self._executor = executor
        if is_lasting:
            capacity_tokens = _lasting_capacity(architecture, capacity_tokens)
            encoder_tokens = _whole(encoder_tokens, ENCODER_TOKENS_AT_ONCE)
        self._encoder_tokens = encoder_tokens
        self._loop: DecodeLoop | None = None
        like = torch.empty(0, dtype=executor.dtype, device=executor.device)
        with (
            report_out_of_memory(f"making a cache of {capacity_tokens:,} tokens", NEXT_STEP),
            torch.inference_mode(),
        ):
            self.cache: KVCache = architecture.new_cache(
                1, capacity_tokens, like, encoder_tokens, executor.plan.demand.kv_cache
            )

    def suits(self, capacity_tokens: int, encoder_tokens: int) -> bool:
        """Whether new memory for such a sequence would be just like this one."""
        return self.cache.max_tokens == _lasting_capacity(
            self._architecture, capacity_tokens
        ) and self._encoder_tokens == _whole(encoder_tokens, ENCODER_TOKENS_AT_ONCE)

    @property
    def loop(self) -> DecodeLoop:
        """The decode steps in this memory."""
        if self._loop is None:
            with report_out_of_memory("preparing decode steps", NEXT_STEP), torch.inference_mode():
                self._loop = DecodeLoop(
                    self._architecture, self._executor, self.cache, self.cache.max_tokens
                )
        return self._loop


def _lasting_capacity(architecture: Architecture, num_tokens: int) -> int:
    limit = architecture.max_positions
    unit = min(limit or _USUAL_TOKENS, _MOST_TOKENS_AT_ONCE)
    capacity_tokens = _whole(num_tokens, unit)
    return capacity_tokens if limit is None else min(capacity_tokens, limit)


def _whole(number: int, unit: int) -> int:
    return -(-number // unit) * unit
