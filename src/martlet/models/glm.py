"""GLM-4-9B and GLM-Edge: Llama's blocks, biases of queries, keys and values, neighbours turned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.models.architecture import CheckpointTensor
from martlet.models.fields import Fields
from martlet.models.fused import fused_place
from martlet.models.rope_fields import RopeForm
from martlet.models.rotary_config import Defaults, RotaryConfig, read_sizes
from martlet.models.rotary_decoder import Extras, RotaryDecoder

__all__ = ["Glm", "GlmConfig"]

_DEFAULTS = Defaults(
    max_position_embeddings=131072,
    rms_norm_eps=1.5625e-07,
    head_dim=128,
    num_key_value_heads=2,
    rope=RopeForm(partial=0.5, is_interleaved=True),
)


@dataclass(frozen=True, kw_only=True)
class GlmConfig(RotaryConfig):
    """The fields of a GLM config.json that change results."""

    attention_bias: bool

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> GlmConfig:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        sizes = read_sizes(fields, _DEFAULTS)
        attention_bias = fields.flag("attention_bias", True)
        fields.refuse_unknown()
        return cls(**sizes, attention_bias=attention_bias)


class Glm(RotaryDecoder):
    """The GLM architecture with one configuration."""

    model_type = "glm"
    config: GlmConfig

    def __init__(self, config: GlmConfig) -> None:
        super().__init__(config)

    @property
    def extras(self) -> Extras:
        """Biases of queries, keys and values as config.json says."""
        return Extras(has_qkv_bias=self.config.attention_bias)

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """Gate and up are one matrix."""
        gated = dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), self.config.intermediate_size)
        place = fused_place(name, "mlp.gate_up_proj", gated, "model.")
        return place or super().checkpoint_tensor(name)
