"""Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: Llama's blocks, their matrices fused in checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.layers.rope_scaling import LongRope, Scaling
from martlet.layers.sight import Sight
from martlet.models.architecture import CheckpointTensor
from martlet.models.fields import Fields
from martlet.models.fused import fused_place
from martlet.models.rope_fields import RopeForm
from martlet.models.rotary_config import Defaults, RotaryConfig, read_sizes
from martlet.models.rotary_decoder import RotaryDecoder

__all__ = ["Phi3", "Phi3Config"]

_DEFAULTS = Defaults(max_position_embeddings=4096, rms_norm_eps=1e-5, rope=RopeForm(partial=1.0))


@dataclass(frozen=True, kw_only=True)
class Phi3Config(RotaryConfig):
    """The fields of a Phi-3 config.json that change results."""

    sliding_window: int | None

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> Phi3Config:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        sizes = read_sizes(fields, _DEFAULTS)
        window = fields.size("sliding_window") if fields.has("sliding_window") else None
        for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
            fields.require(name, False)
        # Phi-4-mini says with these that its layers are all alike.
        fields.require("full_attn_mod", 1)
        fields.require("interpolate_factor", 1)
        if type(sizes["rotary"].scaling) not in (Scaling, LongRope):
            raise fields.bad("rope_scaling", fields.get("rope_scaling"), "longrope alone")
        fields.refuse_unknown()
        return cls(**sizes, sliding_window=window)


class Phi3(RotaryDecoder):
    """The Phi-3 architecture with one configuration."""

    model_type = "phi3"
    config: Phi3Config

    def __init__(self, config: Phi3Config) -> None:
        super().__init__(config, {"full": Sight(config.rotary, config.sliding_window)})

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """Queries, keys and values are one matrix, so are gate and up."""
        config = self.config
        keys = config.num_key_value_heads * config.head_dim
        attention = {
            "self_attn.q_proj": config.num_attention_heads * config.head_dim,
            "self_attn.k_proj": keys,
            "self_attn.v_proj": keys,
        }
        gated = dict.fromkeys(("mlp.gate_proj", "mlp.up_proj"), config.intermediate_size)
        return (
            fused_place(name, "self_attn.qkv_proj", attention, "model.")
            or fused_place(name, "mlp.gate_up_proj", gated, "model.")
            or super().checkpoint_tensor(name)
        )
