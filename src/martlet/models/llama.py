"""Llama 1 to 3.x: RMS norms, rotary positions, grouped-query attention, a gated SiLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.models.fields import Fields
from martlet.models.rotary_config import Defaults, RotaryConfig, read_sizes
from martlet.models.rotary_decoder import Extras, RotaryDecoder

__all__ = ["Llama", "LlamaConfig"]


@dataclass(frozen=True, kw_only=True)
class LlamaConfig(RotaryConfig):
    """The fields of a Llama config.json that change results."""

    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> LlamaConfig:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        sizes = read_sizes(fields, Defaults())
        attention_bias = fields.flag("attention_bias", False)
        mlp_bias = fields.flag("mlp_bias", False)
        fields.refuse_unknown()
        return cls(**sizes, attention_bias=attention_bias, mlp_bias=mlp_bias)


class Llama(RotaryDecoder):
    """The Llama architecture with one configuration."""

    model_type = "llama"
    config: LlamaConfig

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)

    @property
    def extras(self) -> Extras:
        """Biases as config.json says."""
        return Extras(
            has_qkv_bias=self.config.attention_bias,
            has_out_bias=self.config.attention_bias,
            has_mlp_bias=self.config.mlp_bias,
        )
