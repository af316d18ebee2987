"""Some slots of a cache, as one pass over a decoder sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from martlet.layers.decoder_cache import SteppingCache
from martlet.layers.kv_memory import KVMemory
from martlet.quantization.vectors import KeysValues, parts_of, quantize_vectors

__all__ = ["CacheRows"]


class CacheRows:
    """The rows of a pass are these slots, in this order; what is written stays in the cache.

    A run of neighbouring slots is read in place. Of other slots each layer is read as a copy, so
    keep the slots that are in use close together.

    The encoder's output belongs to these rows and waits here, until every decoder block has made
    its keys and values from it; then they are in the cache, for whoever looks at the slot.
    """

    def __init__(self, memory: KVMemory, slots: Sequence[int]) -> None:
        assert slots
        assert len(set(slots)) == len(slots), "a slot has one row"
        self._memory = memory
        self._slots = list(slots)
        is_run = self._slots == list(range(slots[0], slots[0] + len(slots)))
        self._run = slice(slots[0], slots[0] + len(slots)) if is_run else None
        self._places: tuple[Tensor, Tensor] | None = None
        self._encoder_output: Tensor | None = None
        self._num_encoder_tokens = max(self.encoder_lengths)
        self._layers_done: set[int] = set()

    @property
    def num_slots(self) -> int:
        """Number of rows."""
        return len(self._slots)

    @property
    def max_tokens(self) -> int:
        """Tokens that fit into a slot."""
        return self._memory.shape.max_tokens

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens that each slot holds."""
        return tuple(self._memory.lengths[slot] for slot in self._slots)

    @property
    def encoder_lengths(self) -> tuple[int, ...]:
        """Encoder tokens that each slot may look at; 0 before ``set_encoder_output``."""
        return tuple(self._memory.encoder_lengths[slot] for slot in self._slots)

    @property
    def num_encoder_tokens(self) -> int:
        """Width of the encoder output in force, padding included."""
        return self._num_encoder_tokens

    @property
    def stepping(self) -> SteppingCache | None:
        """None: passes over some slots are counted by the host."""
        return None

    def append(
        self, layer: int, keys: Tensor, values: Tensor, counts: Sequence[int]
    ) -> tuple[KeysValues, KeysValues]:
        """``write``, then the keys and values of everything so far, only to be read.

        What lies behind the end of a shorter slot is unspecified but finite: the caller masks it.

        Shapes:
            keys, values: (num_slots, num_kv_heads, num_tokens, head_dim)
            return: (num_slots, num_kv_heads, tokens of the longest slot, head_dim), twice
        """
        self.write(layer, keys, values, counts)
        stop = self.longest_after(counts)
        all_keys, all_values = self._memory.self_attention[:, layer].unbind()
        return self._read(all_keys, stop), self._read(all_values, stop)

    def write(self, layer: int, keys: Tensor, values: Tensor, counts: Sequence[int]) -> None:
        """Write behind what the slots hold: the first ``counts[row]`` tokens of each row.

        Shapes:
            keys, values: (num_slots, num_kv_heads, num_tokens, head_dim), padded at the right
        """
        assert keys.shape == values.shape
        assert keys.shape[0] == len(counts) == self.num_slots
        stop = self.longest_after(counts)
        assert stop <= self.max_tokens, f"{stop} tokens do not fit into {self.max_tokens}"
        for memory, new in self._parts(self._memory.self_attention, layer, keys, values):
            self._write(memory, new, counts)

    def row(self, layer: int, row: int, num_tokens: int) -> tuple[KeysValues, KeysValues]:
        """The first keys and values of one row, in place.

        Shapes:
            return: (1, num_kv_heads, num_tokens, head_dim), twice
        """
        slot = self._slots[row]
        found = self._memory.self_attention[:, layer, slot : slot + 1, :, :num_tokens]
        keys, values = found.unbind()
        return keys, values

    def longest_after(self, counts: Sequence[int]) -> int:
        """Tokens of the longest slot once ``counts`` more are in."""
        return max(have + more for have, more in zip(self.lengths, counts, strict=True))

    def advance(self, counts: Sequence[int]) -> None:
        """Count the tokens that every layer has appended."""
        assert self.longest_after(counts) <= self.max_tokens
        for slot, count in zip(self._slots, counts, strict=True):
            self._memory.lengths[slot] += count
        self._places = None

    def set_encoder_output(self, hidden: Tensor, lengths: Tensor | Sequence[int]) -> None:
        """Attach the final hidden state of the encoder; keys and values of an older one go.

        Shapes:
            hidden: (num_slots, num_encoder_tokens, hidden_size)
            lengths: (num_slots,) real tokens of each row, the rest is padding at the right
        """
        max_encoder_tokens = self._memory.shape.max_encoder_tokens
        assert max_encoder_tokens is not None, "this model has no encoder"
        assert hidden.shape[0] == len(lengths) == self.num_slots
        num_tokens = hidden.shape[1]
        limit = max_encoder_tokens or num_tokens
        assert num_tokens <= limit, f"{num_tokens} encoder tokens do not fit into {limit}"
        assert all(0 <= int(length) <= num_tokens for length in lengths)
        self._hold_encoder_tokens(num_tokens)
        for slot, length in zip(self._slots, lengths, strict=True):
            self._memory.encoder_lengths[slot] = int(length)
        self._encoder_output = hidden
        self._num_encoder_tokens = num_tokens
        self._layers_done.clear()

    @property
    def awaits_encoder_output(self) -> bool:
        """Whether the next pass has to make keys and values of a new encoder output."""
        return self._encoder_output is not None

    def encoder_keys_values(
        self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[KeysValues, KeysValues]:
        """Keys and values of the encoder output; ``project`` makes them the first time only.

        Once every layer has its own, the encoder output itself is let go.

        Shapes:
            return: (num_slots, num_kv_heads, num_encoder_tokens, head_dim), twice
        """
        self.hold_encoder_output(layer, project)
        all_keys, all_values = self._memory.cross_attention[:, layer].unbind()
        width = self._num_encoder_tokens
        return self._read(all_keys, width), self._read(all_values, width)

    def hold_encoder_output(
        self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        """Make the keys and values of an encoder output that waits, see ``encoder_row``."""
        if self._encoder_output is not None and layer not in self._layers_done:
            rows = self._slots if self._run is None else self._run
            width = self._num_encoder_tokens
            keys, values = project(self._encoder_output)
            for memory, new in self._parts(self._memory.cross_attention, layer, keys, values):
                memory[rows, :, :width] = new
            self._note_layer(layer)
        assert layer in self._memory.ready_layers, "set_encoder_output comes first"

    def encoder_row(self, layer: int, row: int, num_tokens: int) -> tuple[KeysValues, KeysValues]:
        """The first keys and values of what the encoder has read for one row, in place.

        Shapes:
            return: (1, num_kv_heads, num_tokens, head_dim), twice
        """
        slot = self._slots[row]
        found = self._memory.cross_attention[:, layer, slot : slot + 1, :, :num_tokens]
        keys, values = found.unbind()
        return keys, values

    def _note_layer(self, layer: int) -> None:
        self._memory.ready_layers.add(layer)
        self._layers_done.add(layer)
        if len(self._layers_done) == self._memory.shape.num_layers:
            self._encoder_output = None

    def _hold_encoder_tokens(self, num_tokens: int) -> None:
        # The other slots would lose what they hold.
        assert num_tokens <= self._memory.cross_attention.shape[4], "made without room for it"

    def _parts(
        self, memory: KeysValues, layer: int, keys: Tensor, values: Tensor
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Each tensor of a layer's memory, beside what is to be written into it.

        Shapes:
            memory: (2, num_layers, all slots, num_kv_heads, tokens, head_dim)
            keys, values: (num_slots, num_kv_heads, num_tokens, head_dim)
            return: (all slots, num_kv_heads, tokens, ...) and (num_slots, num_kv_heads,
                num_tokens, ...)
        """
        if isinstance(memory, Tensor):
            yield memory[0, layer], keys
            yield memory[1, layer], values
            return
        # Both at a time: on a processor every one of these small operations counts.
        fresh = quantize_vectors(torch.stack((keys, values)))
        for part, new in zip(parts_of(memory), parts_of(fresh), strict=True):
            yield part[0, layer], new[0]
            yield part[1, layer], new[1]

    def _write(self, memory: Tensor, new: Tensor, counts: Sequence[int]) -> None:
        """``new`` behind what each slot holds; shapes as ``_parts`` gives them."""
        lengths = self.lengths
        if self._run is not None and len(set(lengths)) == 1 and len(set(counts)) == 1:
            start, count = lengths[0], counts[0]
            memory[self._run, :, start : start + count] = new[:, :, :count]
        elif set(counts) == {1}:
            memory[self._one_place_a_row()] = new[:, :, 0]
        else:
            for row, (slot, start) in enumerate(zip(self._slots, lengths, strict=True)):
                memory[slot, :, start : start + counts[row]] = new[row, :, : counts[row]]

    def _one_place_a_row(self) -> tuple[Tensor, slice, Tensor]:
        """Where the next token of each row goes, made once a pass."""
        if self._places is None:
            device = self._memory.device
            self._places = (
                torch.tensor(self._slots, device=device),
                torch.tensor(self.lengths, device=device),
            )
        return self._places[0], slice(None), self._places[1]

    def _read(self, memory: KeysValues, stop: int) -> KeysValues:
        if self._run is not None:
            return memory[self._run, :, :stop]
        return memory[:, :, :stop][self._slots]
