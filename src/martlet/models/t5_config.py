"""The configuration of T5 and its kin, read from a config.json and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.errors import ModelFileError
from martlet.kernels import ops
from martlet.models.fields import Fields

__all__ = ["T5Config"]


@dataclass(frozen=True)
class T5Config:
    """The fields of a T5 config.json that change results.

    ``tie_word_embeddings`` tells whether the embedding serves as head, ``scale_decoder_outputs``
    whether the hidden state is divided by sqrt(d_model) before the head: T5 1.0 does both, all
    later ones neither. ``attn_scale`` divides attention scores by sqrt(d_kv), as EVA 2.0 does.
    """

    vocab_size: int
    d_model: int
    d_kv: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    dense_act_fn: str = "gelu_new"
    is_gated_act: bool = True
    tie_word_embeddings: bool = False
    scale_decoder_outputs: bool = False
    attn_scale: bool = False

    def __post_init__(self) -> None:
        buckets, distance = (
            self.relative_attention_num_buckets,
            self.relative_attention_max_distance,
        )
        if buckets < 4 or distance <= buckets // 2:
            raise ModelFileError(
                f"config.json has relative_attention_num_buckets = {buckets} and "
                f"relative_attention_max_distance = {distance}; supported are at least 4 buckets "
                "and a distance above half their number"
            )

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> T5Config:
        """Read and check a config.json of model type t5 or mt5.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        fields.require("is_encoder_decoder", True)
        fields.require("is_decoder", False)
        fields.require("pruned_heads", {})
        fields.require("quantization_config", None)
        is_mt5 = config.get("model_type") == "mt5"
        activation, is_gated = _activation(fields, "gated-gelu" if is_mt5 else "relu")
        num_layers = fields.size("num_layers", limit=1024)
        tied = fields.flag("tie_word_embeddings", not is_mt5)
        # Positions are relative; the others are names of old versions.
        fields.ignore("n_positions", "output_past", "tie_encoder_decoder")
        made = cls(
            vocab_size=fields.size("vocab_size"),
            d_model=fields.size("d_model"),
            d_kv=fields.size("d_kv"),
            d_ff=fields.size("d_ff"),
            num_layers=num_layers,
            num_decoder_layers=fields.size("num_decoder_layers", num_layers, limit=1024),
            num_heads=fields.size("num_heads"),
            relative_attention_num_buckets=fields.size(
                "relative_attention_num_buckets", 32, limit=4096
            ),
            relative_attention_max_distance=fields.size("relative_attention_max_distance", 128),
            layer_norm_epsilon=fields.positive("layer_norm_epsilon", 1e-6),
            dense_act_fn=activation,
            is_gated_act=is_gated,
            tie_word_embeddings=tied,
            scale_decoder_outputs=fields.flag("scale_decoder_outputs", tied and not is_mt5),
            attn_scale=fields.flag("attn_scale", False),
        )
        fields.refuse_unknown()
        return made


def _activation(fields: Fields, default: str) -> tuple[str, bool]:
    """The name of the activation and whether it is gated, from ``feed_forward_proj``.

    "gated-gelu" has always meant the tanh approximation, "gelu" alone the exact function.
    """
    choices = [name for act in ops.ACTIVATIONS for name in (act, f"gated-{act}")]
    word = fields.choice("feed_forward_proj", default, choices)
    is_gated = word.startswith("gated-")
    activation = "gelu_new" if word == "gated-gelu" else word.removeprefix("gated-")
    # Newer files repeat both halves; a file that contradicts itself is not guessed at.
    fields.require("dense_act_fn", activation)
    fields.require("is_gated_act", is_gated)
    return activation, is_gated
