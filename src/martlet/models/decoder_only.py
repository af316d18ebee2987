"""What all decoder-only architectures share: one stack, one kind of cache, positions from 0 on."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from martlet.layers.attention import Pass
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.kv_cache import KVCache, KVShape
from martlet.layers.sight import Sight, Span, pass_of, step_of
from martlet.models.architecture import FIXED, BlockSpec, CheckpointTensor, Stack, TensorSpec
from martlet.quantization.kv_form import KVForm

__all__ = ["DecoderOnly"]


class DecoderOnly:
    """The part of an ``Architecture`` that follows from a few sizes; see there.

    Every architecture of this kind has a hard limit of positions.
    """

    has_encoder = False
    mask_heads = 1

    def __init__(
        self,
        vocab_size: int,
        num_layers: int,
        num_key_value_heads: int,
        head_dim: int,
        num_positions: int,
    ) -> None:
        self.vocab_size = vocab_size
        self.max_positions: int | None = num_positions
        self._num_layers = num_layers
        self._num_key_value_heads = num_key_value_heads
        self._head_dim = head_dim
        self._num_positions = num_positions

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """By its own name, or without "model." where the checkpoint is of the body alone."""
        return CheckpointTensor((name, name.removeprefix("model.")))

    def num_blocks(self, stack: Stack) -> int:
        """Layers of the decoder; there is no encoder."""
        return self._num_layers if stack == "decoder" else 0

    def new_cache(
        self,
        num_slots: int,
        max_tokens: int,
        like: Tensor,
        max_encoder_tokens: int = 0,
        kv_cache: KVForm = "none",
    ) -> KVCache:
        """An empty cache; there is no encoder, so ``max_encoder_tokens`` must be 0."""
        assert max_encoder_tokens == 0
        return KVCache(self._kv_shape(num_slots, max_tokens, kv_cache), like)

    def cache_bytes(
        self,
        num_slots: int,
        max_tokens: int,
        max_encoder_tokens: int,
        dtype: torch.dtype,
        kv_cache: KVForm = "none",
    ) -> int:
        """Bytes of such a cache."""
        return self._kv_shape(num_slots, max_tokens, kv_cache).nbytes(dtype)

    def _kv_shape(self, num_slots: int, max_tokens: int, kv_cache: KVForm) -> KVShape:
        return KVShape(
            num_layers=self._num_layers,
            num_slots=num_slots,
            num_kv_heads=self._num_key_value_heads,
            head_dim=self._head_dim,
            max_tokens=max_tokens,
            form=kv_cache,
        )

    def _specs(
        self, fixed: list[TensorSpec], prefix: str, layer: tuple[TensorSpec, ...]
    ) -> tuple[BlockSpec, ...]:
        """The fixed block, and one block a layer; ``prefix`` has {} for the layer's index."""
        layers = range(self._num_layers)
        blocks = (BlockSpec(f"decoder.{index}", prefix.format(index), layer) for index in layers)
        return (BlockSpec(FIXED, "", tuple(fixed)), *blocks)

    def _leave(self, index: int, counts: list[int], cache: DecoderCache | None) -> None:
        """The end of a block: after the last one the cache has ``counts`` tokens more, by slot."""
        if cache is not None and index == self._num_layers - 1:
            cache.advance(counts)

    def _passes(
        self,
        sights: Mapping[str, Sight],
        hidden: Tensor,
        cache: DecoderCache | None,
        lengths: Tensor | None,
    ) -> dict[str, Pass]:
        """What the layers of each kind share in this pass, or in this step on the device.

        Shapes:
            hidden: (batch, num_tokens, hidden_size)
            lengths: (batch,), None = all tokens are real
        """
        if cache is not None and cache.stepping is not None:
            stepping = cache.stepping
            return {name: step_of(name, see, stepping, hidden) for name, see in sights.items()}
        num_tokens = hidden.shape[1]
        starts, counts, num_keys = self._places(hidden[..., 0], cache, lengths)
        capacity = num_tokens if cache is None else max(cache.max_tokens, num_tokens)
        span = Span(starts, counts, num_tokens, num_keys, capacity)
        return {name: pass_of(see, span, hidden) for name, see in sights.items()}

    def _places(
        self, token_ids: Tensor, cache: DecoderCache | None, lengths: Tensor | None
    ) -> tuple[list[int], list[int], int]:
        """By row: the position of the first token and the real tokens; and the keys to attend to.

        Shapes:
            token_ids: (batch, num_tokens)
            lengths: (batch,), None = all tokens are real
        """
        batch, num_tokens = token_ids.shape
        counts = [num_tokens] * batch if lengths is None else lengths.tolist()
        starts = [0] * batch if cache is None else list(cache.lengths)
        ends = map(sum, zip(starts, counts, strict=True))
        assert max(ends) <= self._num_positions, "too many positions"
        num_keys = num_tokens if cache is None else cache.longest_after(counts)
        return starts, counts, num_keys
