"""GPT-NeoX and Pythia: layer norms, partial rotary positions, both halves of a block at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from martlet.kernels import ops
from martlet.layers.attention import Pass, self_attention
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.linear import linear, linears
from martlet.layers.norm import layer_norm
from martlet.layers.rotary import Rotary
from martlet.layers.sight import Sight
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
from martlet.models.rope_fields import RopeForm, read_rotary
from martlet.models.specs import linear_specs, norm_specs

__all__ = ["GPTNeoX", "GPTNeoXConfig"]

_EMBED = "gpt_neox.embed_in.weight"
_NORM = "gpt_neox.final_layer_norm"
_HEAD = "embed_out.weight"
_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_PREFIX = "gpt_neox."
_FUSED = "attention.query_key_value"
# GPT-NeoX-20B's name for the tanh approximation.
_GELU_FAST = "gelu_fast"


@dataclass(frozen=True)
class GPTNeoXConfig:
    """The fields of a GPT-NeoX config.json that change results."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    max_position_embeddings: int
    rotary: Rotary
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    use_parallel_residual: bool = True
    attention_bias: bool = True
    tie_word_embeddings: bool = False

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> GPTNeoXConfig:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        fields.require("quantization_config", None)
        fields.ignore("attention_probs_dropout_prob", "is_decoder", "custom_pipelines")
        hidden_size = fields.size("hidden_size")
        num_heads = fields.size("num_attention_heads")
        require_whole_heads("hidden_size", hidden_size, "num_attention_heads", num_heads)
        positions = fields.size("max_position_embeddings", 2048)
        # The older names of what is now among the rope settings.
        form = RopeForm(
            theta=fields.positive("rotary_emb_base", 10000.0),
            partial=fields.positive("rotary_pct", 0.25),
        )
        activation = fields.choice("hidden_act", "gelu", (*ops.ACTIVATIONS, _GELU_FAST))
        made = cls(
            vocab_size=fields.size("vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=fields.size("intermediate_size"),
            num_hidden_layers=fields.size("num_hidden_layers", limit=1024),
            num_attention_heads=num_heads,
            max_position_embeddings=positions,
            rotary=read_rotary(fields, hidden_size // num_heads, positions, form),
            hidden_act="gelu_new" if activation == _GELU_FAST else activation,
            layer_norm_eps=fields.positive("layer_norm_eps", 1e-5),
            use_parallel_residual=fields.flag("use_parallel_residual", True),
            attention_bias=fields.flag("attention_bias", True),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        )
        fields.refuse_unknown()
        return made


class GPTNeoX(LayerNormDecoder):
    """The GPT-NeoX architecture with one configuration."""

    model_type = "gpt_neox"

    def __init__(self, config: GPTNeoXConfig) -> None:
        super().__init__(
            Ends(_EMBED, _NORM, _HEAD, config.layer_norm_eps, config.tie_word_embeddings),
            config.vocab_size,
            config.num_hidden_layers,
            (config.num_attention_heads, config.head_dim),
            config.rotary.scaling.positions(config.max_position_embeddings),
        )
        self.config = config
        self._sight = Sight(config.rotary)

    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The fixed block and one block a layer, in file order."""
        config = self.config
        width, inner = config.hidden_size, config.intermediate_size
        has_bias = config.attention_bias
        layer = (
            *norm_specs("input_layernorm", width),
            *(
                spec
                for name in (*_QKV, "attention.dense")
                for spec in linear_specs(name, width, width, has_bias=has_bias)
            ),
            *norm_specs("post_attention_layernorm", width),
            *linear_specs("mlp.dense_h_to_4h", inner, width),
            *linear_specs("mlp.dense_4h_to_h", width, inner),
        )
        return self._specs(self._end_specs(), "gpt_neox.layers.{}.", layer)

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """With or without "gpt_neox."; head by head, queries, keys and values are one matrix."""
        place = fused_place(name, _FUSED, dict.fromkeys(_QKV, self.config.head_dim), _PREFIX)
        return place or CheckpointTensor((name, name.removeprefix(_PREFIX)))

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """Each half of a block has its norm; a scale goes through ReLU alone."""
        assert stack == "decoder"
        config = self.config
        value, inner = _QKV[-1], "mlp.dense_h_to_4h"
        values = (
            (f"{value}.weight", f"{value}.bias") if config.attention_bias else (f"{value}.weight",)
        )
        is_linear = config.hidden_act == "relu"
        return (
            LinearInput(
                tuple(f"{name}.weight" for name in _QKV),
                ("input_layernorm.weight", "input_layernorm.bias"),
            ),
            LinearInput(("attention.dense.weight",), values),
            LinearInput(
                (f"{inner}.weight",),
                ("post_attention_layernorm.weight", "post_attention_layernorm.bias"),
            ),
            LinearInput(
                ("mlp.dense_4h_to_h.weight",),
                (f"{inner}.weight", f"{inner}.bias") if is_linear else (),
            ),
        )

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
        hidden = self._look_up(fixed, token_ids)
        return hidden, self._passes({"full": self._sight}, hidden, cache, lengths)["full"]

    def block(
        self,
        stack: Stack,
        index: int,
        weights: Weights,
        hidden: Tensor,
        step: Pass,
        cache: DecoderCache | None,
    ) -> Tensor:
        """Attention and the feed-forward network, of the same input or one after the other.

        The last block advances the cache.
        """
        eps, activation = self.config.layer_norm_eps, self.config.hidden_act
        before_attention = layer_norm(weights, "input_layernorm", eps)
        qkv = linears(weights, _QKV, hidden, norm=before_attention)
        mixed = self_attention(qkv, self._heads, step, cache, index)
        after_attention = linear(weights, "attention.dense", mixed, residual=hidden)
        seen = hidden if self.config.use_parallel_residual else after_attention
        before_mlp = layer_norm(weights, "post_attention_layernorm", eps)
        inner = linear(weights, "mlp.dense_h_to_4h", seen, norm=before_mlp, activation=activation)
        hidden = linear(weights, "mlp.dense_4h_to_h", inner, residual=after_attention)
        self._leave(index, step.counts, cache)
        return hidden
