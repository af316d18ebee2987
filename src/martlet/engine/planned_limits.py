"""For how many texts at a time memory is planned, and for how long ones."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from martlet.engine.batch_limits import CHUNK_TOKENS, BatchLimits
from martlet.engine.demand import Lengths, estimate_batch_demand, estimate_demand
from martlet.engine.load_options import LoadOptions
from martlet.engine.machine import GpuState
from martlet.engine.sequence_memory import ENCODER_TOKENS_AT_ONCE
from martlet.errors import CapacityError
from martlet.memory.plan import Demand, Plan
from martlet.models.architecture import Architecture

__all__ = ["AUTO_SLOTS", "TextDemands", "limits_to_try", "plan_for_texts"]

AUTO_SLOTS = (16, 8, 4, 2, 1)
"""What ``slots="auto"`` chooses from: the first whose cache takes at most a quarter of the memory
that computes, and with which the model fits; the last of them if it fits at all."""

_SHARE_OF_CACHES = 4  # caches of "auto" take at most one part in so many
# A cache and workspace are planned for this many tokens where the model itself sets no limit.
_USUAL_TOKENS = 512
# Models with rotary positions take far more tokens than most texts have; the memory for more than
# this many is asked for when a text is that long, or planned for with ``context``.
_MOST_PLANNED_TOKENS = 4096


@dataclass(frozen=True)
class TextDemands:
    """What texts need of the memory that computes; ``state`` None is the CPU's."""

    architecture: Architecture
    options: LoadOptions
    dtype: torch.dtype
    state: GpuState | None = None

    @property
    def streamed_chunk_tokens(self) -> int:
        """Tokens that are computed in about the time in which the weights for them are streamed.

        Cards with matrix units do so many more operations for each byte that the link brings.
        """
        has_matrix_units = self.state is not None and self.state.capability >= (7, 5)
        return 4 * CHUNK_TOKENS if has_matrix_units and self.options.slots else CHUNK_TOKENS

    def of(self, limits: BatchLimits) -> Demand:
        """For a batch; without ``slots``, for one text that is read in one pass."""
        capability = None if self.state is None else self.state.capability
        kv_cache = self.options.kv_cache
        if self.options.slots is None:
            lengths = self._of_one_text(limits)
            demand = estimate_demand(self.architecture, lengths, self.dtype, capability, kv_cache)
        else:
            demand = estimate_batch_demand(
                self.architecture, limits, self.dtype, capability, kv_cache
            )
        return replace(demand, context_bytes=self.state.context_bytes if self.state else 0)

    def _of_one_text(self, limits: BatchLimits) -> Lengths:
        encoder_tokens = limits.encoder_tokens or 0
        if self.state is not None:  # a GPU's caches come in whole numbers of these
            encoder_tokens = -(-encoder_tokens // ENCODER_TOKENS_AT_ONCE) * ENCODER_TOKENS_AT_ONCE
        longest = max(encoder_tokens, limits.slot_tokens)
        return Lengths(1, longest, limits.slot_tokens, encoder_tokens)


def limits_to_try(
    architecture: Architecture, max_input_tokens: int | None, options: LoadOptions
) -> tuple[BatchLimits, ...]:
    """Sizes that memory may be planned for, those with the most slots first.

    A slot has ``options.context`` tokens, or the usual number, and never more than the model has
    positions. The encoder reads what the model was trained to read, or as many as a slot has where
    nobody says; never more than ``options.context``.
    """
    positions = architecture.max_positions
    slot_tokens = options.context or min(positions or _USUAL_TOKENS, _MOST_PLANNED_TOKENS)
    if positions is not None:
        slot_tokens = min(slot_tokens, positions)
    encoder_tokens = None
    if architecture.has_encoder:
        encoder_tokens = max_input_tokens or slot_tokens
        if options.context is not None:
            encoder_tokens = min(encoder_tokens, options.context)
    counts = AUTO_SLOTS if options.slots == "auto" else (options.slots or 1,)
    return tuple(BatchLimits(count, slot_tokens, encoder_tokens) for count in counts)


def plan_for_texts(
    candidates: Sequence[BatchLimits],
    memory_bytes: int,
    demand_of: Callable[[BatchLimits], Demand],
    plan_of: Callable[[Demand], Plan],
    streamed_chunk_tokens: int = CHUNK_TOKENS,
) -> tuple[Plan, BatchLimits]:
    """The plan for the first candidate that fits, by the rule of ``AUTO_SLOTS``.

    ``memory_bytes`` is the budget of the memory that computes. Where prompts are read with weights
    that are streamed, a pass costs the time of the link however few tokens it reads: it may then
    read ``streamed_chunk_tokens``, if there is memory for that.

    Raises:
        CapacityError: not even the last candidate fits.
    """
    plan, limits = _first_that_fits(candidates, memory_bytes, demand_of, plan_of)
    is_streamed = any(phase.streamed() for phase in plan.phases if phase.phase != "decode")
    if limits.chunk_tokens < streamed_chunk_tokens and is_streamed:
        wider = replace(limits, chunk_tokens=streamed_chunk_tokens)
        with contextlib.suppress(CapacityError):
            return plan_of(demand_of(wider)), wider
    return plan, limits


def _first_that_fits(
    candidates: Sequence[BatchLimits],
    memory_bytes: int,
    demand_of: Callable[[BatchLimits], Demand],
    plan_of: Callable[[Demand], Plan],
) -> tuple[Plan, BatchLimits]:
    for limits in candidates[:-1]:
        demand = demand_of(limits)
        if _SHARE_OF_CACHES * demand.kv_cache_bytes <= memory_bytes:
            try:
                return plan_of(demand), limits
            except CapacityError:
                continue
    last = candidates[-1]
    try:
        return plan_of(demand_of(last)), last
    except CapacityError as error:
        if last.num_slots == 1:
            raise
        raise CapacityError(
            f"{error}; or plan for less than {last.num_slots} texts (--slots) of "
            f"{last.slot_tokens:,} tokens (--context)"
        ) from None
