"""Gemma 3, its text: Gemma 2 with norms of heads for soft-caps, two rotations, mostly sliding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from martlet.layers.rotary import Rotary
from martlet.layers.sight import Sight
from martlet.models.architecture import CheckpointTensor
from martlet.models.fields import Fields
from martlet.models.gemma import GEMMA_DEFAULTS
from martlet.models.gemma2 import Gemma2, Gemma2Config, soft_cap
from martlet.models.rope_fields import RopeForm, read_rotary
from martlet.models.rotary_config import read_layer_kinds, read_sizes
from martlet.models.rotary_decoder import Extras

__all__ = ["SLIDING_PATTERN", "SLIDING_THETA", "Gemma3", "Gemma3Config"]

_DEFAULTS = replace(
    GEMMA_DEFAULTS,
    max_position_embeddings=131072,
    act_field="hidden_activation",
    num_key_value_heads=4,
    rope=RopeForm(theta=1e6),
)
# The published files of models that also see name only the sizes that differ from these.
_SIZES = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
}
SLIDING_THETA = 10000.0
"""The base of sliding layers where no file tells it."""
SLIDING_PATTERN = 6
"""Of so many layers the last is a full one, where no file tells it."""


@dataclass(frozen=True, kw_only=True)
class Gemma3Config(Gemma2Config):
    """The fields of a Gemma 3 config.json that change results of text.

    ``rotary`` turns the heads of full layers, ``sliding_rotary`` those of sliding ones.
    """

    sliding_rotary: Rotary

    @property
    def max_positions(self) -> int:
        """The positions named: what stretches the full layers is counted there already."""
        return self.max_position_embeddings

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> Gemma3Config:
        """Read and check the text's part of a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields({**_SIZES, **config})
        sizes = read_sizes(fields, _DEFAULTS, "full_attention")
        fields.require("hidden_act", sizes["hidden_act"])
        fields.require("use_bidirectional_attention", False)
        fields.require("attn_logit_softcapping", None)
        made = cls(
            **sizes,
            attention_bias=fields.flag("attention_bias", False),
            query_pre_attn_scalar=fields.positive("query_pre_attn_scalar", 256.0),
            sliding_window=fields.size("sliding_window", 4096),
            kinds=_kinds(fields, sizes["num_hidden_layers"]),
            attn_logit_softcapping=None,
            final_logit_softcapping=soft_cap(fields, "final_logit_softcapping", None),
            sliding_rotary=_sliding_rotary(fields, sizes),
        )
        fields.refuse_unknown()
        return made


class Gemma3(Gemma2):
    """The Gemma 3 architecture with one configuration; what sees images is not loaded."""

    model_type = "gemma3_text"
    config: Gemma3Config

    def __init__(self, config: Gemma3Config) -> None:
        super().__init__(config)
        self._sights["sliding"] = Sight(config.sliding_rotary, config.sliding_window)

    @property
    def extras(self) -> Extras:
        """Norms of each head."""
        return replace(super().extras, has_head_norms=True)

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """By its own name, or as the part "language_model" of a checkpoint that also sees."""
        (full, short) = super().checkpoint_tensor(name).names
        nested = (f"language_model.{full}", f"model.language_model.{short}")
        return CheckpointTensor((full, short, *nested))


def _kinds(fields: Fields, num_layers: int) -> tuple[str, ...]:
    """The kind of each layer, by list or by how many there are to a full one."""
    every = fields.size("sliding_window_pattern", SLIDING_PATTERN)
    # transformers repeats it under this name.
    fields.require("_sliding_window_pattern", every)
    pattern = ["sliding" if (index + 1) % every else "full" for index in range(num_layers)]
    return read_layer_kinds(fields, num_layers, pattern)


def _sliding_rotary(fields: Fields, sizes: Mapping[str, Any]) -> Rotary:
    """The rotation of sliding layers: a group of its own, or a base of its own."""
    groups, head_dim = fields.get("rope_parameters"), sizes["head_dim"]
    theta = fields.positive("rope_local_base_freq", SLIDING_THETA)
    if not groups:
        return Rotary(head_dim, theta)
    both = {"full_attention", "sliding_attention"}
    if not isinstance(groups, Mapping) or groups.keys() != both:
        raise fields.bad("rope_parameters", groups, "settings for " + " and ".join(sorted(both)))
    form = RopeForm(theta=theta)
    return read_rotary(
        fields, head_dim, sizes["max_position_embeddings"], form, "sliding_attention"
    )
