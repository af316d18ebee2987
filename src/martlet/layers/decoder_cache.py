"""What a decoder needs of the memory of its keys and values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from martlet.kernels.cache_view import CacheView
from martlet.quantization.vectors import KeysValues

__all__ = ["DecoderCache", "SteppingCache"]


class SteppingCache(Protocol):
    """A cache whose lengths live on the device, so that steps need no host; see ``KVCache``."""

    @property
    def max_tokens(self) -> int:
        """Tokens that fit into a slot."""
        ...

    @property
    def step_lengths(self) -> Tensor:
        """Tokens that each slot holds, (num_slots,) int32 on the device."""
        ...

    def step_view(self, layer: int) -> CacheView:
        """The memory of a layer and the lengths on the device."""
        ...

    def encoder_step_view(self, layer: int) -> CacheView:
        """Keys and values of the encoder's output, which the first pass has made."""
        ...

    def step_constant(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What all steps share and no step should compute again."""
        ...


class DecoderCache(Protocol):
    """The keys and values that one pass goes on from and adds to; row i of the pass is row i here.

    A pass reads ``lengths``, lets every block ``append`` and ends with one ``advance``. Either a
    whole ``KVCache`` or some of its slots, ``CacheRows``.
    """

    @property
    def max_tokens(self) -> int:
        """Tokens that fit into a row, which texts may grow to."""
        ...

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that each row holds."""
        ...

    @property
    def encoder_lengths(self) -> tuple[int, ...]:
        """Encoder tokens that each row may look at."""
        ...

    @property
    def num_encoder_tokens(self) -> int:
        """Width of the encoder keys and values of this pass, padding included."""
        ...

    @property
    def stepping(self) -> SteppingCache | None:
        """The same cache while its lengths live on the device, else None."""
        ...

    def longest_after(self, counts: Sequence[int]) -> int:
        """Tokens of the longest row once ``counts`` more are in."""
        ...

    def append(
        self, layer: int, keys: Tensor, values: Tensor, counts: Sequence[int]
    ) -> tuple[KeysValues, KeysValues]:
        """``write``, then the keys and values of everything so far, with padding at the right."""
        ...

    def write(self, layer: int, keys: Tensor, values: Tensor, counts: Sequence[int]) -> None:
        """Write behind what the rows hold."""
        ...

    def row(self, layer: int, row: int, num_tokens: int) -> tuple[KeysValues, KeysValues]:
        """The first keys and values of one row."""
        ...

    def advance(self, counts: Sequence[int]) -> None:
        """Count the tokens that every layer has appended."""
        ...

    def encoder_keys_values(
        self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[KeysValues, KeysValues]:
        """Keys and values of the encoder output; ``project`` makes them the first time only."""
        ...

    def hold_encoder_output(
        self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        """Make these keys and values if that has not been done."""
        ...

    def encoder_row(self, layer: int, row: int, num_tokens: int) -> tuple[KeysValues, KeysValues]:
        """The first of them, of one row."""
        ...
