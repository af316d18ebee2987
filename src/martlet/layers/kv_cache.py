"""Keys and values of the tokens so far, in memory that is allocated once.

A cache has slots, one a sequence; the rows of a batch are its slots in order. Slots may hold
different numbers of tokens. While they hold the same number, reading and writing are plain slices.

A pass over a decoder reads ``lengths``, lets every block ``append`` its new keys and values, and
ends with one ``advance``; a pass that fails half way leaves the cache as it was before.

Between ``begin_steps`` and ``end_steps`` the lengths live on the device, so that a decode step
that was captured once serves every position: blocks then look at ``step_view``, and whoever runs
the steps counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels.cache_view import CacheView

__all__ = ["KVCache", "KVShape"]


@dataclass(frozen=True)
class KVShape:
    """What a cache has room for; ``max_encoder_tokens`` is None for a decoder-only model.

    The hidden size of the encoder is ``hidden_size``; its output is kept until every decoder block
    has made its keys and values from it.
    """

    num_layers: int
    num_slots: int
    num_kv_heads: int
    head_dim: int
    max_tokens: int
    max_encoder_tokens: int | None = None
    hidden_size: int = 0

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of a cache of this shape when it is full, encoder output included."""
        encoder_tokens = self.max_encoder_tokens or 0
        per_token = 2 * self.num_layers * self.num_kv_heads * self.head_dim
        elements = per_token * (self.max_tokens + encoder_tokens)
        elements += encoder_tokens * self.hidden_size
        return self.num_slots * elements * dtype.itemsize


class KVCache:
    """A static cache for all decoder blocks of a model.

    The memory for cross attention is allocated with the cache when ``shape.max_encoder_tokens``
    is positive; with 0 it is allocated when the first encoder output comes, and again when a
    longer one does.
    """

    def __init__(self, shape: KVShape, like: Tensor) -> None:
        assert shape.num_slots > 0
        assert shape.max_tokens > 0
        self.shape = shape
        self._dtype, self._device = like.dtype, like.device
        self._lengths = [0] * shape.num_slots
        self._encoder_lengths: list[int] = []
        self._encoder_output: Tensor | None = None
        # [keys, values], each (num_layers, num_slots, num_kv_heads, tokens, head_dim). Zeros and
        # not empty: a masked score must not be NaN.
        self._self_attention = self._allocate(shape.max_tokens)
        self._cross_attention = self._allocate(shape.max_encoder_tokens or 0)
        self._num_encoder_tokens = 0
        self._cross_layers_ready: set[int] = set()
        self._is_stepping = False
        # (num_slots,) int32 each
        self._step_lengths = torch.zeros(shape.num_slots, dtype=torch.int32, device=like.device)
        self._step_encoder_lengths = torch.zeros_like(self._step_lengths)
        self._step_constants: dict[str, Tensor] = {}

    def _allocate(self, num_tokens: int) -> Tensor:
        shape = self.shape
        return torch.zeros(
            (2, shape.num_layers, shape.num_slots, shape.num_kv_heads, num_tokens, shape.head_dim),
            dtype=self._dtype,
            device=self._device,
        )

    @property
    def num_slots(self) -> int:
        """Number of sequences."""
        return self.shape.num_slots

    @property
    def max_tokens(self) -> int:
        """Tokens that fit into a slot."""
        return self.shape.max_tokens

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that each slot holds."""
        return tuple(self._lengths)

    @property
    def encoder_lengths(self) -> tuple[int, ...]:
        """Encoder tokens that each slot may look at; empty before ``set_encoder_output``."""
        return tuple(self._encoder_lengths)

    @property
    def num_encoder_tokens(self) -> int:
        """Width of the encoder output in force, padding included."""
        return self._num_encoder_tokens

    @property
    def nbytes(self) -> int:
        """Bytes that the cache holds now."""
        waiting = 0 if self._encoder_output is None else self._encoder_output.nbytes
        return self._self_attention.nbytes + self._cross_attention.nbytes + waiting

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self._lengths = [0] * self.num_slots
        self._encoder_lengths = []
        self._encoder_output = None
        self._num_encoder_tokens = 0
        self._cross_layers_ready.clear()

    def truncate(self, slot: int, num_tokens: int) -> None:
        """Keep only the first ``num_tokens`` tokens of a slot; 0 frees it for another sequence."""
        assert 0 <= num_tokens <= self._lengths[slot]
        self._lengths[slot] = num_tokens

    def append(
        self, layer: int, keys: Tensor, values: Tensor, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Write behind what the slots hold; the keys and values of everything so far, as views.

        The first ``counts[slot]`` tokens of a row are written, the rest is padding. What lies
        behind the end of a shorter slot in the views is unspecified but finite: the caller masks
        it.

        Shapes:
            keys, values: (num_slots, num_kv_heads, num_tokens, head_dim)
            return: (num_slots, num_kv_heads, tokens of the longest slot, head_dim), twice
        """
        assert keys.shape == values.shape
        assert keys.shape[0] == len(counts) == self.num_slots
        stop = self.longest_after(counts)
        assert stop <= self.max_tokens, f"{stop} tokens do not fit into {self.max_tokens}"
        all_keys, all_values = self._self_attention[0, layer], self._self_attention[1, layer]
        if len(set(self._lengths)) == 1 and len(set(counts)) == 1:
            start, count = self._lengths[0], counts[0]
            all_keys[:, :, start:stop] = keys[:, :, :count]
            all_values[:, :, start:stop] = values[:, :, :count]
        else:
            for slot, (start, count) in enumerate(zip(self._lengths, counts, strict=True)):
                all_keys[slot, :, start : start + count] = keys[slot, :, :count]
                all_values[slot, :, start : start + count] = values[slot, :, :count]
        return all_keys[:, :, :stop], all_values[:, :, :stop]

    def longest_after(self, counts: Sequence[int]) -> int:
        """Tokens of the longest slot once ``counts`` more are in."""
        return max(have + more for have, more in zip(self._lengths, counts, strict=True))

    def advance(self, counts: Sequence[int]) -> None:
        """Count the tokens that every layer has appended; steps on the device count themselves."""
        if self._is_stepping:
            return
        assert self.longest_after(counts) <= self.max_tokens
        self._lengths = [have + more for have, more in zip(self._lengths, counts, strict=True)]

    def set_encoder_output(self, hidden: Tensor, lengths: Tensor | Sequence[int]) -> None:
        """Attach the final hidden state of the encoder; keys and values of an older one go.

        Shapes:
            hidden: (num_slots, num_encoder_tokens, hidden_size)
            lengths: (num_slots,) real tokens of each row, the rest is padding at the right
        """
        assert self.shape.max_encoder_tokens is not None, "this model has no encoder"
        assert hidden.shape[0] == len(lengths) == self.num_slots
        num_tokens = hidden.shape[1]
        limit = self.shape.max_encoder_tokens or num_tokens
        assert num_tokens <= limit, f"{num_tokens} encoder tokens do not fit into {limit}"
        self._encoder_lengths = [int(length) for length in lengths]
        assert all(0 <= length <= num_tokens for length in self._encoder_lengths)
        self._encoder_output = hidden
        self._num_encoder_tokens = num_tokens
        self._cross_layers_ready.clear()
        if num_tokens > self._cross_attention.shape[4]:
            self._cross_attention = self._allocate(0)  # the old one goes before the new one comes
            self._cross_attention = self._allocate(num_tokens)

    @property
    def awaits_encoder_output(self) -> bool:
        """Whether the next pass has to make keys and values of a new encoder output."""
        return self._encoder_output is not None

    @property
    def is_stepping(self) -> bool:
        """Whether lengths live on the device for now."""
        return self._is_stepping

    @property
    def step_lengths(self) -> Tensor:
        """Tokens that each slot holds while steps run, (num_slots,) int32 on the device."""
        return self._step_lengths

    def begin_steps(self) -> None:
        """Hand the lengths over to the device; the memory of ``step_lengths`` stays the same."""
        assert not self.awaits_encoder_output, "the first pass over the decoder comes before"
        self._step_lengths.copy_(torch.tensor(self._lengths, dtype=torch.int32))
        if self._encoder_lengths:
            lengths = torch.tensor(self._encoder_lengths, dtype=torch.int32)
            self._step_encoder_lengths.copy_(lengths)
        self._is_stepping = True

    def end_steps(self, lengths: Sequence[int]) -> None:
        """Take the lengths back, as the steps have left them."""
        assert len(lengths) == self.num_slots
        assert max(lengths) <= self.max_tokens
        self._lengths = list(lengths)
        self._is_stepping = False

    def step_view(self, layer: int) -> CacheView:
        """The memory of a layer and the lengths on the device."""
        keys, values = self._self_attention[0, layer], self._self_attention[1, layer]
        return CacheView(keys, values, self._step_lengths)

    def encoder_step_view(self, layer: int) -> CacheView:
        """Keys and values of the encoder's output, which the first pass has made."""
        assert layer in self._cross_layers_ready
        keys, values = self._cross_attention[0, layer], self._cross_attention[1, layer]
        return CacheView(keys, values, self._step_encoder_lengths)

    def step_constant(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What all steps share and no step should compute again, as a table of position bias."""
        if name not in self._step_constants:
            self._step_constants[name] = make()
        return self._step_constants[name]

    def encoder_keys_values(
        self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder output; ``project`` makes them the first time only.

        Once every layer has its own, the encoder output itself is let go.

        Shapes:
            return: (num_slots, num_kv_heads, num_encoder_tokens, head_dim), twice
        """
        views = self._cross_attention[:, layer, :, :, : self._num_encoder_tokens]
        if layer not in self._cross_layers_ready:
            assert self._encoder_output is not None, "set_encoder_output comes first"
            views[0], views[1] = project(self._encoder_output)
            self._cross_layers_ready.add(layer)
            if len(self._cross_layers_ready) == self.shape.num_layers:
                self._encoder_output = None
        return views[0], views[1]
