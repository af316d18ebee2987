"""GPT-J: attention and feed-forward network side by side on one norm, rotary positions in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from martlet.errors import ModelFileError
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
    TensorSpec,
    Weights,
)
from martlet.models.fields import Fields
from martlet.models.layer_norm_decoder import Ends, LayerNormDecoder, require_whole_heads
from martlet.models.specs import linear_specs, norm_specs

__all__ = ["GPTJ", "GPTJConfig"]

_WTE = "transformer.wte.weight"
_LN_F = "transformer.ln_f"
_HEAD = "lm_head.weight"
_HEAD_BIAS = "lm_head.bias"
_QKV = ("attn.q_proj", "attn.k_proj", "attn.v_proj")


@dataclass(frozen=True)
class GPTJConfig:
    """The fields of a GPT-J config.json that change results.

    The first ``rotary_dim`` components of a head are turned.
    """

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    rotary_dim: int = 64
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        require_whole_heads("n_embd", self.n_embd, "n_head", self.n_head)
        if self.rotary_dim % 2 or self.rotary_dim > self.head_dim:
            raise ModelFileError(
                f"config.json has rotary_dim = {self.rotary_dim}; supported is an even number up "
                f"to the width of a head, {self.head_dim}"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> GPTJConfig:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        # These say what a GPT-J is; the published file repeats them.
        fields.require("rotary", True)
        fields.require("scale_attn_weights", True)
        fields.require("quantization_config", None)
        n_embd = fields.size("n_embd")
        made = cls(
            vocab_size=fields.size("vocab_size"),
            n_positions=fields.size("n_positions", 2048),
            n_embd=n_embd,
            n_layer=fields.size("n_layer", limit=1024),
            n_head=fields.size("n_head"),
            n_inner=fields.size("n_inner", 4 * n_embd),
            rotary_dim=fields.size("rotary_dim", 64),
            activation_function=fields.choice("activation_function", "gelu_new", ops.ACTIVATIONS),
            layer_norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
            tie_word_embeddings=fields.flag("tie_word_embeddings", False),
        )
        fields.refuse_unknown()
        return made


class GPTJ(LayerNormDecoder):
    """The GPT-J architecture with one configuration."""

    model_type = "gptj"

    def __init__(self, config: GPTJConfig) -> None:
        super().__init__(
            Ends(_WTE, _LN_F, _HEAD, config.layer_norm_epsilon, config.tie_word_embeddings),
            config.vocab_size,
            config.n_layer,
            (config.n_head, config.head_dim),
            config.n_positions,
        )
        self.config = config
        self._sight = Sight(Rotary(config.rotary_dim, is_interleaved=True))

    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The fixed block and one block a layer, in file order."""
        config = self.config
        width = config.n_embd
        fixed = [*self._end_specs(), TensorSpec(_HEAD_BIAS, (config.vocab_size,), "other")]
        layer = (
            *norm_specs("ln_1", width),
            *(
                spec
                for name in (*_QKV, "attn.out_proj")
                for spec in linear_specs(name, width, width, has_bias=False)
            ),
            *linear_specs("mlp.fc_in", config.n_inner, width),
            *linear_specs("mlp.fc_out", width, config.n_inner),
        )
        return self._specs(fixed, "transformer.h.{}.", layer)

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """By its own name, with or without "transformer."."""
        return CheckpointTensor((name, name.removeprefix("transformer.")))

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """One norm is before all that reads the hidden state; a scale goes through ReLU alone."""
        assert stack == "decoder"
        is_linear = self.config.activation_function == "relu"
        readers = (*_QKV, "mlp.fc_in")
        return (
            LinearInput(tuple(f"{name}.weight" for name in readers), ("ln_1.weight", "ln_1.bias")),
            LinearInput(("attn.out_proj.weight",), ("attn.v_proj.weight",)),
            LinearInput(
                ("mlp.fc_out.weight",), ("mlp.fc_in.weight", "mlp.fc_in.bias") if is_linear else ()
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
        """Attention and the feed-forward network of the same input; the last block advances."""
        config = self.config
        norm = layer_norm(weights, "ln_1", config.layer_norm_epsilon)
        qkv = linears(weights, _QKV, hidden, norm=norm)
        inner = linear(
            weights, "mlp.fc_in", hidden, norm=norm, activation=config.activation_function
        )
        mixed = self_attention(qkv, self._heads, step, cache, index)
        hidden = linear(weights, "attn.out_proj", mixed, residual=hidden)
        hidden = linear(weights, "mlp.fc_out", inner, residual=hidden)
        self._leave(index, step.counts, cache)
        return hidden
