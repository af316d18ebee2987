"""What the config.json of every model with rotary positions and a gated network says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from martlet.errors import ModelFileError
from martlet.kernels import ops
from martlet.layers.rotary import Rotary
from martlet.models.fields import Fields
from martlet.models.rope_fields import RopeForm, read_rotary

__all__ = ["Defaults", "RotaryConfig", "read_layer_kinds", "read_sizes"]


@dataclass(frozen=True, kw_only=True)
class RotaryConfig:
    """The fields that change results and that all of these families have."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int
    rms_norm_eps: float
    hidden_act: str
    tie_word_embeddings: bool
    rotary: Rotary

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ModelFileError(
                f"config.json has num_attention_heads = {self.num_attention_heads}, which does "
                f"not divide by num_key_value_heads = {self.num_key_value_heads}"
            )

    @property
    def max_positions(self) -> int:
        """How far the model reads: the positions named, times what stretches them."""
        return self.rotary.scaling.positions(self.max_position_embeddings)


_PLAIN = RopeForm()


@dataclass(frozen=True)
class Defaults:
    """What stands for the fields that a config.json of a family may lack.

    ``head_dim`` None is the hidden size over the number of heads, ``num_key_value_heads`` None as
    many as heads of queries. ``act_field`` is what the family calls its activation.
    """

    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-6
    hidden_act: str = "silu"
    act_field: str = "hidden_act"
    tie_word_embeddings: bool = False
    head_dim: int | None = None
    num_key_value_heads: int | None = None
    rope: RopeForm = _PLAIN


def read_sizes(fields: Fields, defaults: Defaults, layer_type: str | None = None) -> dict[str, Any]:
    """The arguments of a ``RotaryConfig``; ``layer_type`` picks among groups of rope settings.

    Raises:
        ModelFileError: see ``load_architecture``.
    """
    fields.require("is_encoder_decoder", False)
    fields.require("add_cross_attention", False)
    fields.require("pruned_heads", {})
    fields.require("quantization_config", None)
    # How weights were once split over machines; the products are the same.
    fields.ignore("pretraining_tp", "is_decoder", "tie_encoder_decoder")
    hidden_size = fields.size("hidden_size")
    num_heads = fields.size("num_attention_heads")
    head_dim = _head_dim(fields, hidden_size, num_heads, defaults.head_dim)
    positions = fields.size("max_position_embeddings", defaults.max_position_embeddings)
    return {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": hidden_size,
        "intermediate_size": fields.size("intermediate_size"),
        "num_hidden_layers": fields.size("num_hidden_layers", limit=1024),
        "num_attention_heads": num_heads,
        "num_key_value_heads": fields.size(
            "num_key_value_heads", defaults.num_key_value_heads or num_heads
        ),
        "head_dim": head_dim,
        "max_position_embeddings": positions,
        "rms_norm_eps": fields.positive("rms_norm_eps", defaults.rms_norm_eps),
        "hidden_act": fields.choice(defaults.act_field, defaults.hidden_act, ops.ACTIVATIONS),
        "tie_word_embeddings": fields.flag("tie_word_embeddings", defaults.tie_word_embeddings),
        "rotary": read_rotary(fields, head_dim, positions, defaults.rope, layer_type),
    }


def _head_dim(fields: Fields, hidden_size: int, num_heads: int, default: int | None) -> int:
    if not fields.has("head_dim") and default is None and hidden_size % num_heads:
        raise ModelFileError(
            f"config.json has hidden_size = {hidden_size}, which does not divide by "
            f"num_attention_heads = {num_heads}, and no head_dim"
        )
    return fields.size("head_dim", default or max(1, hidden_size // num_heads), limit=1 << 14)


_KINDS = {"full_attention": "full", "sliding_attention": "sliding"}


def read_layer_kinds(fields: Fields, num_layers: int, default: list[str]) -> tuple[str, ...]:
    """For each layer "full" or "sliding", from ``layer_types`` where config.json has it.

    Raises:
        ModelFileError: another word, or not one a layer.
    """
    value = fields.get("layer_types")
    if value is None:
        assert len(default) == num_layers
        return tuple(default)
    wanted = f"{num_layers} of " + ", ".join(_KINDS)
    if not isinstance(value, list) or len(value) != num_layers:
        raise fields.bad("layer_types", value, wanted)
    if any(type(each) is not str or each not in _KINDS for each in value):
        raise fields.bad("layer_types", value, wanted)
    return tuple(_KINDS[each] for each in value)
