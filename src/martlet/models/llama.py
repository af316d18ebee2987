"""Llama in its plain form: RMS norm, rotary positions, grouped-query attention, gated SiLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from martlet.errors import ModelFileError
from martlet.kernels import ops
from martlet.layers.attention import DeviceStep, Heads, Pass, decoder_mask, self_attention
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.linear import gated_linear, linear, linears, vector
from martlet.layers.norm import rms_norm
from martlet.layers.rotary import frequencies, rotation
from martlet.models.architecture import (
    BlockSpec,
    LinearInput,
    Stack,
    TensorKind,
    TensorSpec,
    Weights,
)
from martlet.models.decoder_only import DecoderOnly
from martlet.models.fields import Fields

__all__ = ["Llama", "LlamaConfig"]

_EMBED = "model.embed_tokens.weight"
_NORM = "model.norm"
_HEAD = "lm_head.weight"
_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


@dataclass(frozen=True)
class LlamaConfig:
    """The fields of a Llama config.json that change results."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelFileError(
                f"config.json has num_attention_heads = {self.num_attention_heads}, which does "
                f"not divide by num_key_value_heads = {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise ModelFileError(
                f"config.json gives a head_dim of {self.head_dim}; "
                "rotary positions need an even number"
            )

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        fields.require("attention_bias", False)
        fields.require("mlp_bias", False)
        fields.require("pretraining_tp", 1)
        fields.require("is_encoder_decoder", False)
        fields.require("quantization_config", None)
        fields.choice("hidden_act", "silu", ("silu",))
        hidden_size = fields.size("hidden_size")
        num_heads = fields.size("num_attention_heads")
        if not fields.has("head_dim") and hidden_size % num_heads:
            raise ModelFileError(
                f"config.json has hidden_size = {hidden_size}, which does not divide by "
                f"num_attention_heads = {num_heads}, and no head_dim"
            )
        return cls(
            vocab_size=fields.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.size("intermediate_size"),
            num_hidden_layers=fields.size("num_hidden_layers", limit=1024),
            num_attention_heads=num_heads,
            num_key_value_heads=fields.size("num_key_value_heads", num_heads),
            head_dim=fields.size("head_dim", max(1, hidden_size // num_heads)),
            max_position_embeddings=fields.size("max_position_embeddings", 2048),
            rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(fields),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        )


class Llama(DecoderOnly):
    """The Llama architecture with one configuration."""

    model_type = "llama"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(
            config.vocab_size,
            config.num_hidden_layers,
            config.num_key_value_heads,
            config.head_dim,
            config.max_position_embeddings,
        )
        self.config = config
        self._heads = Heads(
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
        )

    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The fixed block and one block a layer, in file order."""
        config = self.config
        table = (config.vocab_size, config.hidden_size)
        fixed = [
            TensorSpec(_EMBED, table, "embedding"),
            TensorSpec(f"{_NORM}.weight", (config.hidden_size,), "other"),
        ]
        if not config.tie_word_embeddings:
            fixed.append(TensorSpec(_HEAD, table, "linear"))
        return self._specs(fixed, "model.layers.{}.", self._layer_specs())

    def _layer_specs(self) -> tuple[TensorSpec, ...]:
        config = self.config
        hidden_size, inner = config.hidden_size, config.intermediate_size
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        specs: list[tuple[str, tuple[int, ...], TensorKind]] = [
            ("input_layernorm.weight", (hidden_size,), "other"),
            ("self_attn.q_proj.weight", (queries, hidden_size), "linear"),
            ("self_attn.k_proj.weight", (keys, hidden_size), "linear"),
            ("self_attn.v_proj.weight", (keys, hidden_size), "linear"),
            ("self_attn.o_proj.weight", (hidden_size, queries), "linear"),
            ("post_attention_layernorm.weight", (hidden_size,), "other"),
            ("mlp.gate_proj.weight", (inner, hidden_size), "linear"),
            ("mlp.up_proj.weight", (inner, hidden_size), "linear"),
            ("mlp.down_proj.weight", (hidden_size, inner), "linear"),
        ]
        return tuple(TensorSpec(*spec) for spec in specs)

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """Norms are before q, k, v and before gate and up; o reads values, down what up makes."""
        assert stack == "decoder"
        config = self.config
        # Where several heads of queries share one of values, so would they share its scales.
        is_grouped = config.num_attention_heads != config.num_key_value_heads
        values = () if is_grouped else ("self_attn.v_proj.weight",)
        feed_forward = ("mlp.gate_proj.weight", "mlp.up_proj.weight")
        return (
            LinearInput(tuple(f"{name}.weight" for name in _QKV), ("input_layernorm.weight",)),
            LinearInput(("self_attn.o_proj.weight",), values),
            LinearInput(feed_forward, ("post_attention_layernorm.weight",)),
            LinearInput(("mlp.down_proj.weight",), ("mlp.up_proj.weight",)),
        )

    def head_input(self) -> LinearInput:
        """The final norm; a table that is tied is also looked up, and so cannot be scaled."""
        if self.config.tie_word_embeddings:
            return LinearInput((_EMBED,))
        return LinearInput((_HEAD,), (f"{_NORM}.weight",))

    def embed(
        self,
        fixed: Weights,
        stack: Stack,
        token_ids: Tensor,
        cache: DecoderCache | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Pass]:
        """Token embeddings, in the dtype of the final norm's weight; positions turn in blocks."""
        assert stack == "decoder"
        config = self.config
        dtype = vector(fixed, f"{_NORM}.weight").dtype
        hidden = ops.embedding(fixed[_EMBED], token_ids, dtype)
        if cache is not None and cache.stepping is not None:
            frequency = cache.stepping.step_constant(
                "frequency",
                lambda: frequencies(config.head_dim, config.rope_theta, hidden.device),
            )
            on_device = DeviceStep(frequency=frequency)
            return hidden, Pass([1] * len(token_ids), None, False, on_device=on_device)
        starts, counts, num_keys = self._places(token_ids, cache, lengths)
        num_tokens = token_ids.shape[1]
        bias, is_causal = decoder_mask(starts, num_tokens, num_keys, hidden)
        turns = rotation(starts, num_tokens, config.head_dim, config.rope_theta, hidden.device)
        return hidden, Pass(counts, bias, is_causal, rotation=turns)

    def block(
        self,
        stack: Stack,
        index: int,
        weights: Weights,
        hidden: Tensor,
        step: Pass,
        cache: DecoderCache | None,
    ) -> Tensor:
        """Attention, then the feed-forward network; the last block advances the cache."""
        eps = self.config.rms_norm_eps
        before_attention = rms_norm(weights, "input_layernorm", eps)
        qkv = linears(weights, _QKV, hidden, norm=before_attention)
        mixed = self_attention(qkv, self._heads, step, cache, index)
        hidden = linear(weights, "self_attn.o_proj", mixed, residual=hidden)
        before_mlp = rms_norm(weights, "post_attention_layernorm", eps)
        inner = gated_linear(
            weights, "mlp.gate_proj", "mlp.up_proj", hidden, "silu", norm=before_mlp
        )
        hidden = linear(weights, "mlp.down_proj", inner, residual=hidden)
        if cache is not None and index == self.config.num_hidden_layers - 1:
            cache.advance(step.counts)
        return hidden

    def head(self, fixed: Weights, stack: Stack, hidden: Tensor) -> Tensor:
        """Final norm and logits, float32."""
        assert stack == "decoder"
        name = _EMBED if self.config.tie_word_embeddings else _HEAD
        norm = rms_norm(fixed, _NORM, self.config.rms_norm_eps)
        return ops.logits(hidden, fixed[name], norm=norm)


def _rope_theta(fields: Fields) -> float:
    """The base of the frequencies; anything that scales positions is refused.

    transformers 5 keeps the settings in ``rope_parameters``, older versions in ``rope_theta``
    and ``rope_scaling``.
    """
    theta = fields.positive("rope_theta", 10000.0)
    for name in ("rope_scaling", "rope_parameters"):
        if not fields.has(name):
            continue
        settings = fields.config[name]
        is_plain = (
            isinstance(settings, Mapping)
            and settings.keys() <= {"rope_theta", "rope_type", "type"}
            and all(settings.get(key, "default") == "default" for key in ("rope_type", "type"))
        )
        if not is_plain:
            raise fields.bad(name, settings, "the rope_type default alone")
        theta = Fields(settings).positive("rope_theta", theta)
    return theta
