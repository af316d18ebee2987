"""Gemma: Llama's blocks with norms around one, scaled embeddings and a tanh GELU in the gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from martlet.layers.attention import Pass
from martlet.layers.decoder_cache import DecoderCache
from martlet.models.architecture import Stack, Weights
from martlet.models.fields import Fields
from martlet.models.rotary_config import Defaults, RotaryConfig, read_sizes
from martlet.models.rotary_decoder import Extras, RotaryDecoder

__all__ = ["GEMMA_DEFAULTS", "Gemma", "GemmaConfig"]

_TANH = "gelu_pytorch_tanh"
GEMMA_DEFAULTS = Defaults(
    max_position_embeddings=8192,
    hidden_act=_TANH,
    tie_word_embeddings=True,
    head_dim=256,
)


@dataclass(frozen=True, kw_only=True)
class GemmaConfig(RotaryConfig):
    """The fields of a Gemma config.json that change results."""

    attention_bias: bool

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> GemmaConfig:
        """Read and check a config.json.

        The first published files say "gelu" and mean its tanh approximation.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields({**config, "hidden_act": _activation(Fields(config))})
        fields.ignore("hidden_activation")
        sizes = read_sizes(fields, GEMMA_DEFAULTS)
        attention_bias = fields.flag("attention_bias", False)
        fields.require("use_bidirectional_attention", False)
        fields.refuse_unknown()
        return cls(**sizes, attention_bias=attention_bias)


class Gemma(RotaryDecoder):
    """The Gemma architecture with one configuration."""

    model_type = "gemma"
    norm_offset = 1.0
    config: GemmaConfig

    @property
    def extras(self) -> Extras:
        """Biases as config.json says."""
        return Extras(
            has_qkv_bias=self.config.attention_bias, has_out_bias=self.config.attention_bias
        )

    def embed(
        self,
        fixed: Weights,
        stack: Stack,
        token_ids: Tensor,
        cache: DecoderCache | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Pass]]:
        """Token embeddings times the root of their width, and a pass a kind of layers.

        The root is rounded to the type of the hidden state before, as in training.
        """
        hidden, step = super().embed(fixed, stack, token_ids, cache, lengths)
        root = torch.tensor(self.config.hidden_size**0.5, dtype=hidden.dtype).item()
        return hidden * root, step


def _activation(fields: Fields) -> str:
    """The activation, by either name of the field."""
    names = dict.fromkeys(fields.get(name) for name in ("hidden_act", "hidden_activation"))
    named = {_TANH if name == "gelu" else str(name) for name in names if name is not None}
    if len(named) > 1:
        raise fields.bad("hidden_act", fields.get("hidden_act"), "the same as hidden_activation")
    return named.pop() if named else _TANH
