"""Llama 1 to 3.x: RMS norms, rotary positions, grouped-query attention, a gated SiLU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.models.architecture import TensorSpec
from martlet.models.fields import Fields
from martlet.models.rotary_config import Defaults, RotaryConfig, read_sizes
from martlet.models.rotary_decoder import RotaryDecoder

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

    def _layer_specs(self) -> tuple[TensorSpec, ...]:
        has_bias = self.config.attention_bias
        return (
            *self._norm_specs("input_layernorm"),
            *self._attention_specs(has_qkv_bias=has_bias, has_out_bias=has_bias),
            *self._norm_specs("post_attention_layernorm"),
            *self._gated_specs(has_bias=self.config.mlp_bias),
        )
