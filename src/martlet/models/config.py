"""From the fields of a config.json to the architecture that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from martlet.errors import ModelFileError
from martlet.models.architecture import Architecture

__all__ = ["load_architecture"]


def _bloom(config: Mapping[str, Any]) -> Architecture:
    from martlet.models.bloom import Bloom, BloomConfig

    return Bloom(BloomConfig.from_fields(config))


def _gpt2(config: Mapping[str, Any]) -> Architecture:
    from martlet.models.gpt2 import GPT2, GPT2Config

    return GPT2(GPT2Config.from_fields(config))


def _llama(config: Mapping[str, Any]) -> Architecture:
    from martlet.models.llama import Llama, LlamaConfig

    return Llama(LlamaConfig.from_fields(config))


def _t5(config: Mapping[str, Any]) -> Architecture:
    from martlet.models.t5 import T5, T5Config

    return T5(T5Config.from_fields(config))


# One line an architecture, by the model_type of Hugging Face.
_ARCHITECTURES: Mapping[str, Callable[[Mapping[str, Any]], Architecture]] = {
    "bloom": _bloom,
    "gpt2": _gpt2,
    "llama": _llama,
    "mt5": _t5,
    "t5": _t5,
}


def load_architecture(config: Mapping[str, Any]) -> Architecture:
    """The architecture that a config.json describes.

    Raises:
        ModelFileError: the model type is unknown, a field is missing or malformed, or a field asks
            for something that would change results and is not implemented.
    """
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        shown = repr(model_type)[:60]
        raise ModelFileError(f"config.json has model_type {shown}; supported are {known}")
    return _ARCHITECTURES[model_type](config)
