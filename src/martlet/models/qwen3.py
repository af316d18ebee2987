"""Qwen3: Llama with norms on each head's queries and keys, and heads of a width of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.models.fields import Fields
from martlet.models.qwen2 import QwenConfig, read_windows
from martlet.models.rotary_config import Defaults, read_sizes
from martlet.models.rotary_decoder import Extras, RotaryDecoder

__all__ = ["Qwen3", "Qwen3Config"]

_DEFAULTS = Defaults(max_position_embeddings=32768, num_key_value_heads=32, head_dim=128)


@dataclass(frozen=True, kw_only=True)
class Qwen3Config(QwenConfig):
    """The fields of a Qwen3 config.json that change results."""

    attention_bias: bool

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> Qwen3Config:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        sizes = read_sizes(fields, _DEFAULTS)
        windows = read_windows(fields, sizes["num_hidden_layers"])
        attention_bias = fields.flag("attention_bias", False)
        fields.refuse_unknown()
        return cls(**sizes, **windows, attention_bias=attention_bias)


class Qwen3(RotaryDecoder):
    """The Qwen3 architecture with one configuration."""

    model_type = "qwen3"
    config: Qwen3Config

    def __init__(self, config: Qwen3Config) -> None:
        super().__init__(config, config.sights, config.kinds)

    @property
    def extras(self) -> Extras:
        """Norms of each head, and biases as config.json says."""
        return Extras(
            has_qkv_bias=self.config.attention_bias,
            has_out_bias=self.config.attention_bias,
            has_head_norms=True,
        )
