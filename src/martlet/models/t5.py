"""T5 and its kin: T5 1.0 and 1.1, Flan-T5, mT5, CPM-2, CPM-2.1, EVA 1.0 and EVA 2.0."""

from __future__ import annotations

import torch
from torch import Tensor

from martlet.kernels import ops
from martlet.layers.attention import (
    DeviceStep,
    Heads,
    Pass,
    cross_attention,
    self_attention,
)
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.kv_cache import KVCache, KVShape
from martlet.layers.linear import gated_linear, linear, linears, vector
from martlet.layers.masks import aligned_bias, causal_bias, padding_bias
from martlet.layers.norm import rms_norm
from martlet.layers.relative_bias import RelativeBuckets, bias_by_distance, relative_bias
from martlet.models.architecture import (
    FIXED,
    BlockSpec,
    CheckpointTensor,
    LinearInput,
    Stack,
    TensorSpec,
    Weights,
)
from martlet.models.t5_config import T5Config
from martlet.quantization.kv_form import KVForm

__all__ = ["T5", "T5Config"]


class T5:
    """The T5 architecture with one configuration."""

    model_type = "t5"
    has_encoder = True
    max_positions: int | None = None

    def __init__(self, config: T5Config) -> None:
        self.config = config
        self.vocab_size = config.vocab_size
        self.mask_heads = config.num_heads
        scale = config.d_kv**-0.5 if config.attn_scale else 1.0
        self._heads = Heads(config.num_heads, config.num_heads, config.d_kv, scale)

    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The fixed block, the encoder's layers and the decoder's, in file order."""
        config = self.config
        heads = (config.relative_attention_num_buckets, config.num_heads)
        fixed = [
            TensorSpec("shared.weight", (config.vocab_size, config.d_model), "embedding"),
            TensorSpec(_table_name("encoder"), heads, "other"),
            TensorSpec(_table_name("decoder"), heads, "other"),
            TensorSpec("encoder.final_layer_norm.weight", (config.d_model,), "other"),
            TensorSpec("decoder.final_layer_norm.weight", (config.d_model,), "other"),
        ]
        if not config.tie_word_embeddings:
            fixed.append(
                TensorSpec("lm_head.weight", (config.vocab_size, config.d_model), "linear")
            )
        stacks: tuple[Stack, ...] = ("encoder", "decoder")
        return (
            BlockSpec(FIXED, "", tuple(fixed)),
            *(
                BlockSpec(f"{stack}.{index}", f"{stack}.block.{index}.", self._layer_specs(stack))
                for stack in stacks
                for index in range(self.num_blocks(stack))
            ),
        )

    def _layer_specs(self, stack: Stack) -> tuple[TensorSpec, ...]:
        config = self.config
        inner = config.num_heads * config.d_kv
        sublayers = (
            ["SelfAttention"] if stack == "encoder" else ["SelfAttention", "EncDecAttention"]
        )
        specs: list[TensorSpec] = []
        once: list[TensorSpec] = []
        for number, name in enumerate(sublayers):
            layer = f"layer.{number}"
            specs.append(TensorSpec(f"{layer}.layer_norm.weight", (config.d_model,), "other"))
            for part in "qkvo":
                shape = (config.d_model, inner) if part == "o" else (inner, config.d_model)
                # Keys and values of the encoder's output are made by the first pass alone.
                is_once = name == "EncDecAttention" and part in "kv"
                spec = TensorSpec(f"{layer}.{name}.{part}.weight", shape, "linear", is_once)
                (once if is_once else specs).append(spec)
        last = f"layer.{len(sublayers)}"
        specs.append(TensorSpec(f"{last}.layer_norm.weight", (config.d_model,), "other"))
        for part in ("wi_0", "wi_1", "wo") if config.is_gated_act else ("wi", "wo"):
            shape = (config.d_model, config.d_ff) if part == "wo" else (config.d_ff, config.d_model)
            specs.append(TensorSpec(f"{last}.DenseReluDense.{part}.weight", shape, "linear"))
        return (*specs, *once)

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """By its own name; an embedding that two stacks share may be called after either."""
        stacks = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        return CheckpointTensor((name, *stacks) if name == "shared.weight" else (name,))

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """A norm is before every sublayer; o reads values, wo what comes out of wi."""
        inputs = [*_attention_inputs("layer.0", "SelfAttention", "qkv")]
        last = "layer.1"
        if stack == "decoder":
            inputs += _attention_inputs("layer.1", "EncDecAttention", "q")
            cross = tuple(f"layer.1.EncDecAttention.{part}.weight" for part in "kv")
            # The encoder's final norm makes it for all blocks alike.
            inputs.append(LinearInput(cross, is_encoder_output=True))
            last = "layer.2"
        name = f"{last}.DenseReluDense"
        first = ("wi_0", "wi_1") if self.config.is_gated_act else ("wi",)
        # A scale goes around a gate and through ReLU, and through no other activation.
        is_linear = self.config.is_gated_act or self.config.dense_act_fn == "relu"
        inputs += [
            LinearInput(
                tuple(f"{name}.{part}.weight" for part in first), (f"{last}.layer_norm.weight",)
            ),
            LinearInput((f"{name}.wo.weight",), (f"{name}.{first[-1]}.weight",) * is_linear),
        ]
        return tuple(inputs)

    def head_input(self) -> LinearInput:
        """The decoder's final norm; a table that is tied is also looked up: no scaling."""
        if self.config.tie_word_embeddings:
            return LinearInput(("shared.weight",))
        return LinearInput(("lm_head.weight",), ("decoder.final_layer_norm.weight",))

    def num_blocks(self, stack: Stack) -> int:
        """Layers of a stack."""
        return self.config.num_layers if stack == "encoder" else self.config.num_decoder_layers

    def _kv_shape(
        self, num_slots: int, max_tokens: int, max_encoder_tokens: int, kv_cache: KVForm
    ) -> KVShape:
        config = self.config
        return KVShape(
            num_layers=config.num_decoder_layers,
            num_slots=num_slots,
            num_kv_heads=config.num_heads,
            head_dim=config.d_kv,
            max_tokens=max_tokens,
            max_encoder_tokens=max_encoder_tokens,
            hidden_size=config.d_model,
            form=kv_cache,
        )

    def new_cache(
        self,
        num_slots: int,
        max_tokens: int,
        like: Tensor,
        max_encoder_tokens: int = 0,
        kv_cache: KVForm = "none",
    ) -> KVCache:
        """An empty cache; with ``max_encoder_tokens`` 0 the cross part grows on demand."""
        shape = self._kv_shape(num_slots, max_tokens, max_encoder_tokens, kv_cache)
        return KVCache(shape, like)

    def cache_bytes(
        self,
        num_slots: int,
        max_tokens: int,
        max_encoder_tokens: int,
        dtype: torch.dtype,
        kv_cache: KVForm = "none",
    ) -> int:
        """Bytes of a cache when it is full, encoder output included."""
        return self._kv_shape(num_slots, max_tokens, max_encoder_tokens, kv_cache).nbytes(dtype)

    def embed(
        self,
        fixed: Weights,
        stack: Stack,
        token_ids: Tensor,
        cache: DecoderCache | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Pass]:
        """Token embeddings, in the dtype of the stack's final norm; a decoder needs its cache."""
        batch, num_tokens = token_ids.shape
        counts = [num_tokens] * batch if lengths is None else lengths.tolist()
        dtype = vector(fixed, f"{stack}.final_layer_norm.weight").dtype
        hidden = ops.embedding(fixed["shared.weight"], token_ids, dtype)
        table = vector(fixed, _table_name(stack)).to(dtype)
        if stack == "encoder":
            bias = relative_bias(table, self._buckets(stack), [0], num_tokens, num_tokens)
            padding = padding_bias(counts, num_tokens, hidden)
            bias = aligned_bias(bias if padding is None else bias + padding)
            return hidden, Pass(counts, bias, False)
        assert cache is not None, "the decoder finds the encoder's output in the cache"
        if cache.stepping is not None:
            by_distance = cache.stepping.step_constant(
                "decoder bias", lambda: bias_by_distance(table, self._buckets(stack))
            )
            return hidden, Pass(counts, None, False, on_device=DeviceStep(bias=by_distance))
        starts, num_keys = cache.lengths, cache.longest_after(counts)
        bias = relative_bias(table, self._buckets(stack), starts, num_tokens, num_keys)
        if num_tokens > 1 or len(set(starts)) > 1:
            bias = bias + causal_bias(starts, num_tokens, num_keys, hidden)
        cross_bias = padding_bias(cache.encoder_lengths, cache.num_encoder_tokens, hidden)
        if cross_bias is not None:
            cross_bias = aligned_bias(cross_bias)
        return hidden, Pass(counts, aligned_bias(bias), False, cross_bias)

    def _buckets(self, stack: Stack) -> RelativeBuckets:
        return RelativeBuckets(
            self.config.relative_attention_num_buckets,
            self.config.relative_attention_max_distance,
            is_bidirectional=stack == "encoder",
        )

    def block(
        self,
        stack: Stack,
        index: int,
        weights: Weights,
        hidden: Tensor,
        step: Pass,
        cache: DecoderCache | None,
    ) -> Tensor:
        """Attention (twice in the decoder), then the feed-forward network.

        The last decoder block advances the cache.
        """
        if stack == "encoder":
            hidden = self._self_attention(weights, hidden, step, None, index)
            return self._feed_forward(weights, "layer.1", hidden)
        assert cache is not None
        hidden = self._self_attention(weights, hidden, step, cache, index)
        hidden = self._cross_attention(weights, hidden, step, cache, index)
        hidden = self._feed_forward(weights, "layer.2", hidden)
        if index == self.config.num_decoder_layers - 1:
            cache.advance(step.counts)
        return hidden

    def _self_attention(
        self, weights: Weights, hidden: Tensor, step: Pass, cache: DecoderCache | None, index: int
    ) -> Tensor:
        name = "layer.0.SelfAttention"
        norm = self._norm(weights, "layer.0.layer_norm")
        qkv = linears(weights, [f"{name}.{part}" for part in "qkv"], hidden, norm=norm)
        mixed = self_attention(qkv, self._heads, step, cache, index)
        return linear(weights, f"{name}.o", mixed, residual=hidden)

    def _cross_attention(
        self, weights: Weights, hidden: Tensor, step: Pass, cache: DecoderCache, index: int
    ) -> Tensor:
        name = "layer.1.EncDecAttention"

        def project(encoder_output: Tensor) -> tuple[Tensor, ...]:
            return linears(weights, [f"{name}.k", f"{name}.v"], encoder_output)

        norm = self._norm(weights, "layer.1.layer_norm")
        q = linear(weights, f"{name}.q", hidden, norm=norm)
        mixed = cross_attention(q, project, self._heads, step, cache, index)
        return linear(weights, f"{name}.o", mixed, residual=hidden)

    def _feed_forward(self, weights: Weights, layer: str, hidden: Tensor) -> Tensor:
        name, activation = f"{layer}.DenseReluDense", self.config.dense_act_fn
        norm = self._norm(weights, f"{layer}.layer_norm")
        if self.config.is_gated_act:
            gate, up = f"{name}.wi_0", f"{name}.wi_1"
            inner = gated_linear(weights, gate, up, hidden, activation, norm=norm)
        else:
            inner = linear(weights, f"{name}.wi", hidden, norm=norm, activation=activation)
        return linear(weights, f"{name}.wo", inner, residual=hidden)

    def _norm(self, weights: Weights, name: str) -> ops.Norm:
        return rms_norm(weights, name, self.config.layer_norm_epsilon)

    def head(self, fixed: Weights, stack: Stack, hidden: Tensor) -> Tensor:
        """The encoder's final hidden state, or the decoder's logits in float32."""
        norm = self._norm(fixed, f"{stack}.final_layer_norm")
        if stack == "encoder":
            return ops.norm(hidden, norm)
        weight = fixed["shared.weight" if self.config.tie_word_embeddings else "lm_head.weight"]
        if self.config.scale_decoder_outputs:
            scaled = ops.norm(hidden, norm) * self.config.d_model**-0.5
            return ops.logits(scaled, weight)
        return ops.logits(hidden, weight, norm=norm)


def _attention_inputs(layer: str, name: str, after_norm: str) -> tuple[LinearInput, ...]:
    """``after_norm`` are those of q, k and v that read the sublayer's norm."""
    readers = tuple(f"{layer}.{name}.{part}.weight" for part in after_norm)
    return (
        LinearInput(readers, (f"{layer}.layer_norm.weight",)),
        LinearInput((f"{layer}.{name}.o.weight",), (f"{layer}.{name}.v.weight",)),
    )


def _table_name(stack: Stack) -> str:
    return f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
