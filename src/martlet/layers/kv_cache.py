"""Keys and values of the tokens so far, in memory that is allocated once.

A cache has slots, one a sequence; the rows of a batch are its slots in order. Slots may hold
different numbers of tokens. While they hold the same number, reading and writing are plain slices.
Some slots alone are ``rows``.

A pass over a decoder reads ``lengths``, lets every block ``append`` its new keys and values, and
ends with one ``advance``; a pass that fails half way leaves the cache as it was before.

Between ``begin_steps`` and ``end_steps`` the lengths live on the device, so that a decode step
that was captured once serves every position: blocks then look at ``steps``, and whoever runs the
steps counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from martlet.layers.cache_rows import CacheRows
from martlet.layers.decoder_cache import SteppingCache
from martlet.layers.kv_memory import KVMemory, KVShape
from martlet.layers.stepped_slots import SteppedSlots

__all__ = ["KVCache", "KVShape"]


class KVCache(CacheRows):
    """A static cache for all decoder blocks of a model; its own rows are all of its slots.

    The memory for cross attention is allocated with the cache when ``shape.max_encoder_tokens``
    is positive; with 0 it is allocated when the first encoder output comes, and again when a
    longer one does.
    """

    def __init__(self, shape: KVShape, like: Tensor) -> None:
        super().__init__(KVMemory(shape, like), range(shape.num_slots))
        self.shape = shape
        self._steps = SteppedSlots.all_of(self._memory)
        self._is_stepping = False

    @property
    def nbytes(self) -> int:
        """Bytes that the cache holds now."""
        waiting = 0 if self._encoder_output is None else self._encoder_output.nbytes
        return self._memory.nbytes + waiting

    def rows(self, slots: Sequence[int]) -> CacheRows:
        """Some slots, for one pass of their own: the other slots neither see nor feel it.

        For cross attention the cache must have been made with room for the encoder's tokens.
        """
        return CacheRows(self._memory, slots)

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self._memory.reset()
        self._encoder_output = None
        self._num_encoder_tokens = 0
        self._layers_done.clear()

    def truncate(self, slot: int, num_tokens: int) -> None:
        """Keep only the first ``num_tokens`` tokens of a slot; 0 frees it for another sequence."""
        assert 0 <= num_tokens <= self._memory.lengths[slot]
        self._memory.lengths[slot] = num_tokens
        if num_tokens == 0:
            self._memory.encoder_lengths[slot] = 0

    def wipe(self, slot: int) -> None:
        """Free a slot that may hold numbers that are not finite, which no mask could hide."""
        self.truncate(slot, 0)
        self._memory.wipe(slot)

    def advance(self, counts: Sequence[int]) -> None:
        """Count the tokens that every layer has appended; steps on the device count themselves."""
        if not self._is_stepping:
            super().advance(counts)

    def _hold_encoder_tokens(self, num_tokens: int) -> None:
        self._memory.hold_encoder_tokens(num_tokens)

    @property
    def is_stepping(self) -> bool:
        """Whether lengths live on the device for now."""
        return self._is_stepping

    @property
    def stepping(self) -> SteppingCache | None:
        """The slots while their lengths live on the device."""
        return self._steps if self._is_stepping else None

    @property
    def steps(self) -> SteppedSlots:
        """The slots as decode steps see them; not in force before ``begin_steps``."""
        return self._steps

    def begin_steps(self) -> None:
        """Hand the lengths over to the device; the memory of ``steps.step_lengths`` is the same."""
        assert not self.awaits_encoder_output, "the first pass over the decoder comes before"
        for slot in range(self.num_slots):
            self._steps.begin(slot)
        self._is_stepping = True

    def end_steps(self, lengths: Sequence[int]) -> None:
        """Take the lengths back, as the steps have left them."""
        assert len(lengths) == self.num_slots
        assert max(lengths) <= self.max_tokens
        self._memory.lengths = list(lengths)
        self._is_stepping = False
