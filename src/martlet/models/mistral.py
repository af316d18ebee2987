"""Mistral: Llama whose layers look back no further than a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.layers.sight import Sight
from martlet.models.fields import Fields
from martlet.models.rotary_config import Defaults, RotaryConfig, read_sizes
from martlet.models.rotary_decoder import RotaryDecoder

__all__ = ["Mistral", "MistralConfig"]

_DEFAULTS = Defaults(max_position_embeddings=131072, num_key_value_heads=8)
_DEFAULT_WINDOW = 4096


@dataclass(frozen=True, kw_only=True)
class MistralConfig(RotaryConfig):
    """The fields of a Mistral config.json that change results; a window of None sees all."""

    sliding_window: int | None

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> MistralConfig:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        sizes = read_sizes(fields, _DEFAULTS)
        # The first release names 4096 or nothing, later ones null for no window.
        window = None
        if fields.has("sliding_window") or "sliding_window" not in config:
            window = fields.size("sliding_window", _DEFAULT_WINDOW)
        fields.refuse_unknown()
        return cls(**sizes, sliding_window=window)


class Mistral(RotaryDecoder):
    """The Mistral architecture with one configuration."""

    model_type = "mistral"
    config: MistralConfig

    def __init__(self, config: MistralConfig) -> None:
        super().__init__(config, {"full": Sight(config.rotary, config.sliding_window)})
