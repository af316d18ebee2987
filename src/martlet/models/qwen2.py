"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values; layers may have windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from martlet.layers.sight import Sight
from martlet.models.fields import Fields
from martlet.models.rotary_config import Defaults, RotaryConfig, read_layer_kinds, read_sizes
from martlet.models.rotary_decoder import Extras, RotaryDecoder

__all__ = ["Qwen2", "Qwen2Config", "QwenConfig"]

_DEFAULTS = Defaults(max_position_embeddings=32768, num_key_value_heads=32)


@dataclass(frozen=True, kw_only=True)
class QwenConfig(RotaryConfig):
    """The fields of Qwen2 and Qwen3: the window, and which layers have it."""

    sliding_window: int | None
    kinds: tuple[str, ...]

    @property
    def sights(self) -> dict[str, Sight]:
        """The kinds of layers."""
        sights = {
            "full": Sight(self.rotary),
            "sliding": Sight(self.rotary, self.sliding_window),
        }
        return {kind: sights[kind] for kind in dict.fromkeys(self.kinds)}


def read_windows(fields: Fields, num_layers: int) -> dict[str, Any]:
    """The arguments of a ``QwenConfig`` that are about windows.

    Raises:
        ModelFileError: see ``load_architecture``.
    """
    window = fields.size("sliding_window", 4096)
    first = fields.get("max_window_layers")
    if first is not None and (type(first) is not int or first < 0):
        raise fields.bad("max_window_layers", first, "an integer from 0 on")
    if not fields.flag("use_sliding_window", False):
        read_layer_kinds(fields, num_layers, ["full"] * num_layers)
        return {"sliding_window": None, "kinds": ("full",) * num_layers}
    num_full = min(28 if first is None else first, num_layers)
    default = ["full"] * num_full + ["sliding"] * (num_layers - num_full)
    return {"sliding_window": window, "kinds": read_layer_kinds(fields, num_layers, default)}


@dataclass(frozen=True, kw_only=True)
class Qwen2Config(QwenConfig):
    """The fields of a Qwen2 config.json that change results."""

    @classmethod
    def from_fields(cls, config: Mapping[str, Any]) -> Qwen2Config:
        """Read and check a config.json.

        Raises:
            ModelFileError: see ``load_architecture``.
        """
        fields = Fields(config)
        sizes = read_sizes(fields, _DEFAULTS)
        windows = read_windows(fields, sizes["num_hidden_layers"])
        fields.refuse_unknown()
        return cls(**sizes, **windows)


class Qwen2(RotaryDecoder):
    """The Qwen2 architecture with one configuration."""

    model_type = "qwen2"
    config: Qwen2Config

    def __init__(self, config: Qwen2Config) -> None:
        super().__init__(config, config.sights, config.kinds)

    @property
    def extras(self) -> Extras:
        """Biases of queries, keys and values."""
        return Extras(has_qkv_bias=True)
