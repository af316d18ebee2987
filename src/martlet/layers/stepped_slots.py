"""Slots of a cache as decode steps see them: their lengths live on the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from martlet.kernels.cache_view import IDLE, CacheView
from martlet.layers.cache_rows import CacheRows
from martlet.layers.decoder_cache import SteppingCache
from martlet.layers.kv_memory import KVMemory

__all__ = ["SteppedSlots"]


class SteppedSlots(CacheRows):
    """The rows of a step are the slots from the first on; idle ones are passed over.

    The host keeps its own count: ``begin`` tells the device what a slot holds, steps on the device
    count there, and whoever reads what they have done calls ``count``. A slot that is idle here may
    be filled by passes over ``KVCache.rows`` meanwhile.

    Shapes:
        lengths, encoder_lengths: (num_slots,) int32 on the device
    """

    def __init__(
        self,
        memory: KVMemory,
        lengths: Tensor,
        encoder_lengths: Tensor,
        constants: dict[str, Tensor],
    ) -> None:
        super().__init__(memory, range(len(lengths)))
        self._lengths = lengths
        self._encoder_lengths = encoder_lengths
        self._constants = constants

    @classmethod
    def all_of(cls, memory: KVMemory) -> SteppedSlots:
        """All slots, every one idle."""
        idle = torch.full((memory.shape.num_slots,), IDLE, dtype=torch.int32, device=memory.device)
        return cls(memory, idle, idle.clone(), {})

    def first(self, num_slots: int) -> SteppedSlots:
        """The first slots alone, in the same memory."""
        return SteppedSlots(
            self._memory,
            self._lengths[:num_slots],
            self._encoder_lengths[:num_slots],
            self._constants,
        )

    def begin(self, slot: int) -> None:
        """Let steps go on with a slot, from what it holds now."""
        self._lengths[slot] = self._memory.lengths[slot]
        self._encoder_lengths[slot] = self._memory.encoder_lengths[slot]

    def rest(self, slot: int) -> None:
        """Let steps pass over a slot."""
        self._lengths[slot] = IDLE
        self._encoder_lengths[slot] = IDLE

    def count(self, slot: int) -> None:
        """Count a token that a step has read for a slot."""
        assert self._memory.lengths[slot] < self.max_tokens
        self._memory.lengths[slot] += 1

    @property
    def stepping(self) -> SteppingCache | None:
        """Itself."""
        return self

    def advance(self, counts: object) -> None:
        """Nothing: steps on the device count themselves."""

    @property
    def step_lengths(self) -> Tensor:
        """Tokens that each slot holds while steps run, (num_slots,) int32 on the device."""
        return self._lengths

    def step_view(self, layer: int) -> CacheView:
        """The memory of a layer and the lengths on the device."""
        keys, values = self._memory.self_attention[:, layer, : self.num_slots].unbind()
        return CacheView(keys, values, self._lengths)

    def encoder_step_view(self, layer: int) -> CacheView:
        """Keys and values of the encoder's output, which the first pass has made."""
        keys, values = self._memory.cross_attention[:, layer, : self.num_slots].unbind()
        return CacheView(keys, values, self._encoder_lengths)

    def step_constant(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What all steps share and no step should compute again, as a table of position bias."""
        if name not in self._constants:
            self._constants[name] = make()
        return self._constants[name]
