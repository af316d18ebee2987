"""BLOOM and BLOOMZ: scores that fall with the distance to the key, and a norm on the embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from martlet.kernels import ops
from martlet.layers.alibi import alibi_bias, alibi_by_distance
from martlet.layers.attention import (
    DeviceStep,
    Pass,
    self_attention,
)
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.linear import linear, linears
from martlet.layers.masks import aligned_bias, causal_bias
from martlet.layers.norm import layer_norm
from martlet.models.architecture import (
    BlockSpec,
    CheckpointTensor,
    LinearInput,
    Stack,
    Weights,
)
from martlet.models.fields import Fields
from martlet.models.fused import fused_place
from martlet.models.layer_norm_decoder import Ends, LayerNormDecoder, require_whole_heads
from martlet.models.specs import linear_specs, norm_specs

__all__ = ["Bloom", "BloomConfig"]

_EMBED = "transformer.word_embeddings.weight"
_EMBED_NORM = "transformer.word_embeddings_layernorm"
_LN_F = "transformer.ln_f"
_HEAD = "lm_head.weight"
_QKV = ("self_attention.q_proj", "self_attention.k_proj", "self_attention.v_proj")
_PREFIX = "transformer."
_FUSED = "self_attention.query_key_value"
# The tanh approximation; the format has no field for another.
_ACTIVATION = "gelu_new"


@dataclass(frozen=True)
class BloomConfig:
    """The fields of a BLOOM config.json that change results.

    Nothing limits positions but what the model has seen: ``seq_length``.
    """

    vocab_size: int
    hidden_size: int
    n_layer: int
    n_head: int
    seq_length: int = 2048
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        require_whole_heads("hidden_size", self.hidden_size, "n_head", self.n_head)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.n_head

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> BloomConfig:
        """Read and check a config.json; sizes have two names in published ones.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        fields.require("apply_residual_connection_post_layernorm", False)
        fields.require("skip_bias_add_qkv", False)
        fields.require("quantization_config", None)
        # How sums were split among the machines of the training, and which kernels it fused.
        fields.ignore("pretraining_tp", "slow_but_exact", "attention_softmax_in_fp32")
        fields.ignore("bias_dropout_fusion", "masked_softmax_fusion", "offset_alibi")
        fields.ignore("skip_bias_add")
        made = cls(
            vocab_size=fields.size("vocab_size"),
            hidden_size=_size(fields, "n_embed", "hidden_size"),
            n_layer=_size(fields, "n_layer", "num_hidden_layers", limit=1024),
            n_head=_size(fields, "n_head", "num_attention_heads"),
            seq_length=fields.size("seq_length", 2048),
            layer_norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.refuse_unknown()
        return made


class Bloom(LayerNormDecoder):
    """The BLOOM architecture with one configuration."""

    model_type = "bloom"

    def __init__(self, config: BloomConfig) -> None:
        super().__init__(
            Ends(_EMBED, _LN_F, _HEAD, config.layer_norm_epsilon, config.tie_word_embeddings),
            config.vocab_size,
            config.n_layer,
            (config.n_head, config.head_dim),
            config.seq_length,
        )
        self.config = config
        self.mask_heads = config.n_head

    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The fixed block and one block a layer, in file order."""
        config = self.config
        width = config.hidden_size
        fixed = self._end_specs(*norm_specs(_EMBED_NORM, width))
        layer = (
            *norm_specs("input_layernorm", width),
            *(spec for name in _QKV for spec in linear_specs(name, width, width)),
            *linear_specs("self_attention.dense", width, width),
            *norm_specs("post_attention_layernorm", width),
            *linear_specs("mlp.dense_h_to_4h", 4 * width, width),
            *linear_specs("mlp.dense_4h_to_h", width, 4 * width),
        )
        return self._specs(fixed, "transformer.h.{}.", layer)

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """With or without "transformer."; head by head, queries, keys and values are one matrix."""
        place = fused_place(name, _FUSED, dict.fromkeys(_QKV, self.config.head_dim), _PREFIX)
        return place or CheckpointTensor((name, name.removeprefix(_PREFIX)))

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """Norms are before queries, keys and values and before the feed-forward network."""
        assert stack == "decoder"
        value = _QKV[-1]
        return (
            LinearInput(
                tuple(f"{name}.weight" for name in _QKV),
                ("input_layernorm.weight", "input_layernorm.bias"),
            ),
            LinearInput(("self_attention.dense.weight",), (f"{value}.weight", f"{value}.bias")),
            LinearInput(
                ("mlp.dense_h_to_4h.weight",),
                ("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
            ),
            LinearInput(("mlp.dense_4h_to_h.weight",)),
        )

    def embed(
        self,
        fixed: Weights,
        stack: Stack,
        token_ids: Tensor,
        cache: DecoderCache | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Pass]:
        """Normalised token embeddings, in the dtype of the final norm's weight."""
        assert stack == "decoder"
        config = self.config
        hidden = self._look_up(fixed, token_ids)
        hidden = ops.norm(hidden, layer_norm(fixed, _EMBED_NORM, config.layer_norm_epsilon))
        if cache is not None and cache.stepping is not None:
            by_distance = cache.stepping.step_constant(
                "alibi", lambda: alibi_by_distance(config.n_head, config.seq_length, hidden.device)
            )
            on_device = DeviceStep(bias=by_distance)
            return hidden, Pass([1] * len(token_ids), None, False, on_device=on_device)
        starts, counts, num_keys = self._places(token_ids, cache, lengths)
        num_tokens = token_ids.shape[1]
        bias = alibi_bias(config.n_head, starts, num_tokens, num_keys, hidden)
        if num_tokens > 1 or len(set(starts)) > 1:
            bias = bias + causal_bias(starts, num_tokens, num_keys, hidden)
        return hidden, Pass(counts, aligned_bias(bias), False)

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
        eps = self.config.layer_norm_epsilon
        before_attention = layer_norm(weights, "input_layernorm", eps)
        qkv = linears(weights, _QKV, hidden, norm=before_attention)
        mixed = self_attention(qkv, self._heads, step, cache, index)
        hidden = linear(weights, "self_attention.dense", mixed, residual=hidden)
        before_mlp = layer_norm(weights, "post_attention_layernorm", eps)
        inner = linear(
            weights, "mlp.dense_h_to_4h", hidden, norm=before_mlp, activation=_ACTIVATION
        )
        hidden = linear(weights, "mlp.dense_4h_to_h", inner, residual=hidden)
        self._leave(index, step.counts, cache)
        return hidden


def _size(fields: Fields, name: str, other: str, limit: int | None = None) -> int:
    """A size that goes by either of two names.

    Raises:
        ModelFileError: it is missing, or they contradict each other.
    """
    found = name if fields.has(name) or not fields.has(other) else other
    size = fields.size(found) if limit is None else fields.size(found, limit=limit)
    fields.require(other, size)
    return size
