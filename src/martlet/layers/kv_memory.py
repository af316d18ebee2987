"""The memory of a cache, slot by slot, whoever looks at it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.quantization.kv_form import KVForm
from martlet.quantization.vectors import SCALE_DTYPE, Int8Vectors, KeysValues, parts_of

__all__ = ["KVMemory", "KVShape"]


@dataclass(frozen=True)
class KVShape:
    """What a cache has room for; ``max_encoder_tokens`` is None for a decoder-only model.

    The hidden size of the encoder is ``hidden_size``; its output is kept until every decoder block
    has made its keys and values from it. ``form`` is that of keys and values; what the encoder has
    put out waits in the type of the activations.
    """

    num_layers: int
    num_slots: int
    num_kv_heads: int
    head_dim: int
    max_tokens: int
    max_encoder_tokens: int | None = None
    hidden_size: int = 0
    form: KVForm = "none"

    def nbytes(self, dtype: torch.dtype) -> int:
        """Bytes of a cache of this shape when it is full, encoder output included."""
        encoder_tokens = self.max_encoder_tokens or 0
        vectors = 2 * self.num_layers * self.num_kv_heads * (self.max_tokens + encoder_tokens)
        waiting_bytes = encoder_tokens * self.hidden_size * dtype.itemsize
        return self.num_slots * (vectors * self._vector_bytes(dtype) + waiting_bytes)

    def _vector_bytes(self, dtype: torch.dtype) -> int:
        if self.form == "int8":
            return self.head_dim + SCALE_DTYPE.itemsize
        return self.head_dim * dtype.itemsize


class KVMemory:
    """Keys and values of all slots and layers, and how many tokens each slot holds.

    ``ready_layers`` are those whose keys and values of an encoder's output have been made.

    Shapes:
        self_attention, cross_attention: (2, num_layers, num_slots, num_kv_heads, tokens, head_dim),
            keys and then values
    """

    def __init__(self, shape: KVShape, like: Tensor) -> None:
        assert shape.num_slots > 0
        assert shape.max_tokens > 0
        self.shape = shape
        self.device = like.device
        self._dtype = like.dtype
        self.lengths = [0] * shape.num_slots
        self.encoder_lengths = [0] * shape.num_slots
        self.ready_layers: set[int] = set()
        self.self_attention = self._allocate(shape.max_tokens)
        self.cross_attention = self._allocate(shape.max_encoder_tokens or 0)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return self.self_attention.nbytes + self.cross_attention.nbytes

    def reset(self) -> None:
        """Forget everything; the memory stays."""
        self.lengths = [0] * self.shape.num_slots
        self.encoder_lengths = [0] * self.shape.num_slots
        self.ready_layers.clear()

    def wipe(self, slot: int) -> None:
        """Make the memory of a slot zeros again.

        A bias hides what lies beyond the end of a text only where it is a finite number.
        """
        with torch.inference_mode():
            for memory in (self.self_attention, self.cross_attention):
                for part in parts_of(memory):
                    part[:, :, slot].zero_()

    def hold_encoder_tokens(self, num_tokens: int) -> None:
        """Make the part for cross attention at least so long; what it held is lost if it grows."""
        if num_tokens > self.cross_attention.shape[4]:
            self.cross_attention = self._allocate(0)  # the old one goes before the new one comes
            self.cross_attention = self._allocate(num_tokens)

    def _allocate(self, num_tokens: int) -> KeysValues:
        shape = self.shape
        sizes = (
            *(2, shape.num_layers, shape.num_slots),
            *(shape.num_kv_heads, num_tokens, shape.head_dim),
        )
        # Zeros and not empty: a masked score must not be NaN.
        if shape.form == "int8":
            return Int8Vectors.zeros(sizes, self.device)
        return torch.zeros(sizes, dtype=self._dtype, device=self.device)
