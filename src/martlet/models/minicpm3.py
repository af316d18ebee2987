"""MiniCPM3: MiniCPM's scales, and attention whose keys and values come out of one short vector.

Queries come from a vector of q_lora_rank numbers, keys and values from one of kv_lora_rank, each
behind a norm of its own (multi-head latent attention). Positions turn components of their own: of
every head's query, and of one key that all heads share. Here that is expanded to ordinary heads,
the turned components first; what is cached are whole keys, and values filled up to their width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.errors import ModelFileError
from martlet.kernels import ops
from martlet.layers.attention import Pass, self_attention
from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.linear import linears, vector
from martlet.layers.rope_scaling import Yarn
from martlet.models.architecture import (
    CheckpointTensor,
    LinearInput,
    Stack,
    TensorSpec,
    Weights,
)
from martlet.models.fields import Fields
from martlet.models.fused import fused_place
from martlet.models.minicpm import ScaledConfig, ScaledDecoder
from martlet.models.rotary_config import Defaults, read_sizes
from martlet.models.rotary_decoder import Extras
from martlet.models.specs import linear_specs, norm_specs

__all__ = ["MiniCPM3", "MiniCPM3Config"]

_DEFAULTS = Defaults(max_position_embeddings=32768, rms_norm_eps=1e-5, tie_word_embeddings=True)
# The norms of the short vectors have an epsilon of their own.
_LATENT_EPS = 1e-6
_Q_A, _Q_NORM = "self_attn.q_a_proj", "self_attn.q_a_layernorm"
_KV_A, _KV_NORM = "self_attn.kv_a_proj", "self_attn.kv_a_layernorm"
_K_ROPE = "self_attn.k_rope_proj"
_Q_ROPE, _Q_NOPE = "self_attn.q_rope_proj", "self_attn.q_nope_proj"
_K_NOPE, _V = "self_attn.k_nope_proj", "self_attn.v_proj"
_OUT = "self_attn.o_proj"


@dataclass(frozen=True, kw_only=True)
class MiniCPM3Config(ScaledConfig):
    """The fields of a MiniCPM3 config.json that change results.

    ``head_dim`` is the width of a whole key, turned components and others together; without a
    ``q_lora_rank`` queries come from the hidden state itself.
    """

    q_lora_rank: int | None
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    attention_bias: bool
    mlp_bias: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_key_value_heads != self.num_attention_heads:
            raise ModelFileError(
                f"config.json has num_key_value_heads = {self.num_key_value_heads}; supported is "
                f"the number of num_attention_heads, {self.num_attention_heads}"
            )
        if self.v_head_dim > self.head_dim:
            raise ModelFileError(
                f"config.json has v_head_dim = {self.v_head_dim}; supported is at most the width "
                f"of a key, {self.head_dim}"
            )

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> MiniCPM3Config:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        rope_dim = Fields(config).size("qk_rope_head_dim", 32, limit=1 << 14)
        # What transformers calls head_dim is what positions turn.
        fields = Fields({**config, "head_dim": rope_dim})
        sizes = read_sizes(fields, _DEFAULTS)
        if isinstance(sizes["rotary"].scaling, Yarn):
            raise fields.bad("rope_type", "yarn", "default, linear, dynamic, longrope or llama3")
        nope_dim = fields.size("qk_nope_head_dim", 64, limit=1 << 14)
        fields.ignore("qk_rope_head_dim")
        fields.require("qk_head_dim", nope_dim + rope_dim)
        width = sizes["hidden_size"] // sizes["num_attention_heads"]
        has_dense_queries = "q_lora_rank" in config and not fields.has("q_lora_rank")
        own = cls(
            **{**sizes, "head_dim": nope_dim + rope_dim},
            **_scales(fields, sizes),
            q_lora_rank=None if has_dense_queries else fields.size("q_lora_rank", 768),
            kv_lora_rank=fields.size("kv_lora_rank", 256),
            qk_nope_head_dim=nope_dim,
            qk_rope_head_dim=rope_dim,
            v_head_dim=fields.size("v_head_dim", max(1, width), limit=1 << 14),
            attention_bias=fields.flag("attention_bias", False),
            mlp_bias=fields.flag("mlp_bias", False),
        )
        fields.refuse_unknown()
        return own


def _scales(fields: Fields, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The multipliers; null is one that changes nothing."""
    missing = {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256.0}
    null = {
        "scale_emb": 1.0,
        "scale_depth": sizes["num_hidden_layers"] ** 0.5,
        "dim_model_base": float(sizes["hidden_size"]),
    }
    return {
        name: fields.positive(name, (null if name in fields.config else missing)[name])
        for name in missing
    }


class MiniCPM3(ScaledDecoder):
    """The MiniCPM3 architecture with one configuration."""

    model_type = "minicpm3"
    config: MiniCPM3Config

    def __init__(self, config: MiniCPM3Config) -> None:
        super().__init__(config)

    @property
    def extras(self) -> Extras:
        """Biases of the gated network as config.json says; ``_attention_specs`` has its own."""
        return Extras(has_mlp_bias=self.config.mlp_bias)

    def _attention_specs(self) -> tuple[TensorSpec, ...]:
        config = self.config
        width, rank = config.hidden_size, config.q_lora_rank
        heads, has_bias = config.num_attention_heads, config.attention_bias
        specs: list[TensorSpec] = []
        if rank is not None:
            specs += linear_specs(_Q_A, rank, width, has_bias=has_bias)
        specs += linear_specs(_KV_A, config.kv_lora_rank, width, has_bias=has_bias)
        specs += linear_specs(_K_ROPE, config.qk_rope_head_dim, width, has_bias=has_bias)
        if rank is not None:
            specs += norm_specs(_Q_NORM, rank, has_bias=False)
        specs += norm_specs(_KV_NORM, config.kv_lora_rank, has_bias=False)
        for names, inputs in (((_Q_ROPE, _Q_NOPE), rank or width), ((_K_NOPE, _V), None)):
            for name in names:
                rows = heads * self._width_of(name)
                specs += linear_specs(name, rows, inputs or config.kv_lora_rank, has_bias=False)
        specs += linear_specs(_OUT, width, heads * config.v_head_dim, has_bias=has_bias)
        return tuple(specs)

    def _width_of(self, name: str) -> int:
        """The components of a head that a matrix makes."""
        config = self.config
        widths = {_Q_ROPE: config.qk_rope_head_dim, _V: config.v_head_dim}
        return widths.get(name, config.qk_nope_head_dim)

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """Two of our matrices are one there: in turn for every head, or one behind the other."""
        config = self.config
        queries = "self_attn.q_proj" if config.q_lora_rank is None else "self_attn.q_b_proj"
        nope, rope, value = (self._width_of(part) for part in (_Q_NOPE, _Q_ROPE, _V))
        for whole, parts in (
            (queries, {_Q_NOPE: nope, _Q_ROPE: rope}),
            ("self_attn.kv_b_proj", {_K_NOPE: nope, _V: value}),
            ("self_attn.kv_a_proj_with_mqa", {_KV_A: config.kv_lora_rank, _K_ROPE: rope}),
        ):
            place = fused_place(name, whole, parts, "model.")
            if place is not None:
                return place
        return super().checkpoint_tensor(name)

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """Every short vector has its norm; o reads values, down what up makes."""
        _, _, *gated = super().linear_inputs(stack)
        queries = LinearInput(_weights((_Q_ROPE, _Q_NOPE)), (f"{_Q_NORM}.weight",))
        return (
            LinearInput(_weights(self._first_names()), ("input_layernorm.weight",)),
            *(queries,) * (self.config.q_lora_rank is not None),
            LinearInput(_weights((_K_NOPE, _V)), (f"{_KV_NORM}.weight",)),
            LinearInput(_weights((_OUT,)), _weights((_V,))),
            *gated,
        )

    def _attention(
        self,
        index: int,
        weights: Weights,
        hidden: Tensor,
        step: dict[str, Pass],
        cache: DecoderCache | None,
    ) -> Tensor:
        """What the heads of a layer gather, before its output matrix."""
        config = self.config
        norm = self._norm(weights, "input_layernorm")
        *queries, latent, k_rope = linears(weights, self._first_names(), hidden, norm=norm)
        if config.q_lora_rank is not None:
            norm = _latent_norm(weights, _Q_NORM)
            queries = list(linears(weights, (_Q_ROPE, _Q_NOPE), queries[0], norm=norm))
        norm = _latent_norm(weights, _KV_NORM)
        k_nope, values = linears(weights, (_K_NOPE, _V), latent, norm=norm)
        heads = (*hidden.shape[:2], config.num_attention_heads, -1)
        q = torch.cat([part.view(heads) for part in queries], dim=-1).flatten(2)
        shared = k_rope[:, :, None].expand(heads)
        k = torch.cat((shared, k_nope.view(heads)), dim=-1).flatten(2)
        v = F.pad(values.view(heads), (0, config.head_dim - config.v_head_dim)).flatten(2)
        mixed = self_attention((q, k, v), self._heads, step[self._kinds[index]], cache, index)
        return mixed.view(heads)[..., : config.v_head_dim].flatten(2)

    def _first_names(self) -> tuple[str, ...]:
        """What reads the hidden state: queries or their short vector, then the others."""
        queries = (_Q_ROPE, _Q_NOPE) if self.config.q_lora_rank is None else (_Q_A,)
        return (*queries, _KV_A, _K_ROPE)


def _latent_norm(weights: Weights, name: str) -> ops.Norm:
    return ops.Norm(vector(weights, f"{name}.weight"), None, _LATENT_EPS)


def _weights(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{name}.weight" for name in names)
