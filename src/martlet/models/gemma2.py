"""Gemma 2: Gemma with every second layer sliding, norms around both halves, and soft-caps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from martlet.layers.sight import Sight
from martlet.models.architecture import Stack, Weights
from martlet.models.fields import Fields
from martlet.models.gemma import GEMMA_DEFAULTS, Gemma, GemmaConfig
from martlet.models.rotary_config import read_layer_kinds, read_sizes

__all__ = ["Gemma2", "Gemma2Config", "soft_cap"]


@dataclass(frozen=True, kw_only=True)
class Gemma2Config(GemmaConfig):
    """The fields of a Gemma 2 config.json that change results.

    ``kinds`` names each layer "full" or "sliding"; sliding ones see ``sliding_window`` tokens.
    """

    query_pre_attn_scalar: float
    sliding_window: int
    kinds: tuple[str, ...]
    attn_logit_softcapping: float | None
    final_logit_softcapping: float | None

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> Gemma2Config:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        sizes = read_sizes(fields, replace(GEMMA_DEFAULTS, act_field="hidden_activation"))
        # The one that is not read must not say something else.
        fields.require("hidden_act", sizes["hidden_act"])
        num_layers = sizes["num_hidden_layers"]
        pattern = ["full" if index % 2 else "sliding" for index in range(num_layers)]
        window = fields.size("sliding_window", 4096)
        fields.require("sliding_window_size", window)
        fields.require("use_bidirectional_attention", False)
        made = cls(
            **sizes,
            attention_bias=fields.flag("attention_bias", False),
            query_pre_attn_scalar=fields.positive("query_pre_attn_scalar", 256.0),
            sliding_window=window,
            kinds=read_layer_kinds(fields, num_layers, pattern),
            attn_logit_softcapping=soft_cap(fields, "attn_logit_softcapping", 50.0),
            final_logit_softcapping=soft_cap(fields, "final_logit_softcapping", 30.0),
        )
        fields.refuse_unknown()
        return made


class Gemma2(Gemma):
    """The Gemma 2 architecture with one configuration."""

    model_type = "gemma2"
    after_attention = "post_attention_layernorm"
    before_mlp = "pre_feedforward_layernorm"
    after_mlp = "post_feedforward_layernorm"
    config: Gemma2Config

    def __init__(self, config: Gemma2Config) -> None:
        sights = {
            "full": Sight(config.rotary),
            "sliding": Sight(config.rotary, config.sliding_window),
        }
        super().__init__(config, sights, config.kinds)
        self._heads = replace(
            self._heads,
            scale=config.query_pre_attn_scalar**-0.5,
            softcap=config.attn_logit_softcapping,
        )

    def head(self, fixed: Weights, stack: Stack, hidden: Tensor) -> Tensor:
        """Final norm and logits, float32, bent towards the soft-cap where there is one."""
        logits = super().head(fixed, stack, hidden)
        cap = self.config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)


def soft_cap(fields: Fields, name: str, default: float | None) -> float | None:
    """A limit above zero; null asks for none.

    Raises:
        ModelFileError: the field is something else.
    """
    if default is None or (name in fields.config and not fields.has(name)):
        return fields.positive(name) if fields.has(name) else None
    return fields.positive(name, default)
