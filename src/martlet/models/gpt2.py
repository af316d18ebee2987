"""GPT-2 and CPM-1: a decoder with learned positions and layer norm before every sublayer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from martlet.kernels import ops
from martlet.layers.attention import DeviceStep, Heads, Pass, self_attention
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.linear import linear, vector
from martlet.layers.masks import decoder_mask
from martlet.layers.norm import layer_norm
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

__all__ = ["GPT2", "GPT2Config"]

_WTE = "transformer.wte.weight"
_WPE = "transformer.wpe.weight"
_LN_F = "transformer.ln_f"
_HEAD = "lm_head.weight"
# Checkpoints keep these as Conv1D, (in_features, out_features).
_CONV1D = (".attn.c_attn.weight", ".attn.c_proj.weight", ".mlp.c_fc.weight", ".mlp.c_proj.weight")


@dataclass(frozen=True)
class GPT2Config:
    """The fields of a GPT-2 config.json that change results."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    tie_word_embeddings: bool = True

    def __post_init__(self) -> None:
        require_whole_heads("n_embd", self.n_embd, "n_head", self.n_head)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.n_embd // self.n_head

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> GPT2Config:
        """Read and check a config.json.

        ``reorder_and_upcast_attn`` is accepted either way: it asks for the softmax in float32,
        which attention always does. The other names that nobody reads are those of old versions.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        fields.require("add_cross_attention", False)
        fields.require("is_encoder_decoder", False)
        fields.require("pruned_heads", {})
        fields.require("quantization_config", None)
        fields.ignore(
            "reorder_and_upcast_attn", "n_ctx", "n_special", "output_past", "predict_special_tokens"
        )
        n_embd = fields.size("n_embd")
        made = cls(
            vocab_size=fields.size("vocab_size"),
            n_positions=fields.size("n_positions" if fields.has("n_positions") else "n_ctx"),
            n_embd=n_embd,
            n_layer=fields.size("n_layer", limit=1024),
            n_head=fields.size("n_head"),
            n_inner=fields.size("n_inner", 4 * n_embd),
            activation_function=fields.choice("activation_function", "gelu_new", ops.ACTIVATIONS),
            layer_norm_epsilon=fields.positive("layer_norm_epsilon", 1e-5),
            scale_attn_weights=fields.flag("scale_attn_weights", True),
            scale_attn_by_inverse_layer_idx=fields.flag("scale_attn_by_inverse_layer_idx", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
        )
        fields.refuse_unknown()
        return made


class GPT2(LayerNormDecoder):
    """The GPT-2 architecture with one configuration."""

    model_type = "gpt2"

    def __init__(self, config: GPT2Config) -> None:
        super().__init__(
            Ends(_WTE, _LN_F, _HEAD, config.layer_norm_epsilon, config.tie_word_embeddings),
            config.vocab_size,
            config.n_layer,
            (config.n_head, config.head_dim),
            config.n_positions,
        )
        self.config = config

    def block_specs(self) -> tuple[BlockSpec, ...]:
        """The fixed block and one block a layer, in file order."""
        config = self.config
        width = config.n_embd
        fixed = self._end_specs(TensorSpec(_WPE, (config.n_positions, width), "other"))
        layer = (
            *norm_specs("ln_1", width),
            *linear_specs("attn.c_attn", 3 * width, width),
            *linear_specs("attn.c_proj", width, width),
            *norm_specs("ln_2", width),
            *linear_specs("mlp.c_fc", config.n_inner, width),
            *linear_specs("mlp.c_proj", width, config.n_inner),
        )
        return self._specs(fixed, "transformer.h.{}.", layer)

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """With or without "transformer."; matrices of layers stand the other way round."""
        # A head that is not tied may still be left out of the file where it equals the embedding.
        known = (name, _WTE) if name == _HEAD else (name,)
        short = tuple(name.removeprefix("transformer.") for name in known)
        return CheckpointTensor(
            tuple(dict.fromkeys(known + short)), transposed=name.endswith(_CONV1D)
        )

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """The norms are before c_attn and c_fc; values are the last third of what c_attn makes."""
        assert stack == "decoder"
        values = ("attn.c_attn.weight", "attn.c_attn.bias")
        # A scale goes through ReLU, and through no other activation.
        is_linear = self.config.activation_function == "relu"
        return (
            LinearInput(("attn.c_attn.weight",), ("ln_1.weight", "ln_1.bias")),
            LinearInput(("attn.c_proj.weight",), values, first_row=2 * self.config.n_embd),
            LinearInput(("mlp.c_fc.weight",), ("ln_2.weight", "ln_2.bias")),
            LinearInput(
                ("mlp.c_proj.weight",), ("mlp.c_fc.weight", "mlp.c_fc.bias") if is_linear else ()
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
        """Token plus position embeddings, in the dtype of the final norm's weight."""
        assert stack == "decoder"
        if cache is not None and cache.stepping is not None:
            dtype = vector(fixed, f"{_LN_F}.weight").dtype
            hidden = ops.step_embedding(
                fixed[_WTE], token_ids, dtype, vector(fixed, _WPE), cache.stepping.step_lengths
            )
            return hidden, Pass([1] * len(token_ids), None, False, on_device=DeviceStep())
        starts, counts, num_keys = self._places(token_ids, cache, lengths)
        num_tokens = token_ids.shape[1]
        first = torch.tensor(starts, device=token_ids.device)[:, None]
        positions = first + torch.arange(num_tokens, device=token_ids.device)
        hidden = self._look_up(fixed, token_ids)
        # Only padding can stand behind the last position.
        hidden = hidden + ops.embedding(
            fixed[_WPE], positions.clamp_(max=self.config.n_positions - 1), hidden.dtype
        )
        return hidden, Pass(counts, *decoder_mask(starts, num_tokens, num_keys, hidden))

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
        eps, activation = self.config.layer_norm_epsilon, self.config.activation_function
        before_attention = layer_norm(weights, "ln_1", eps)
        qkv = linear(weights, "attn.c_attn", hidden, norm=before_attention).chunk(3, dim=-1)
        mixed = self_attention(qkv, self._scaled_heads(index), step, cache, index)
        hidden = linear(weights, "attn.c_proj", mixed, residual=hidden)
        before_mlp = layer_norm(weights, "ln_2", eps)
        inner = linear(weights, "mlp.c_fc", hidden, norm=before_mlp, activation=activation)
        hidden = linear(weights, "mlp.c_proj", inner, residual=hidden)
        self._leave(index, step.counts, cache)
        return hidden

    def _scaled_heads(self, index: int) -> Heads:
        config = self.config
        scale = self._heads.scale if config.scale_attn_weights else 1.0
        if config.scale_attn_by_inverse_layer_idx:
            scale /= index + 1
        return replace(self._heads, scale=scale)
