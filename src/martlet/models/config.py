"""From the fields of a config.json to the architecture that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from martlet.errors import ModelFileError
from martlet.models.architecture import Architecture
from martlet.models.bloom import Bloom, BloomConfig
from martlet.models.gemma import Gemma, GemmaConfig
from martlet.models.gemma2 import Gemma2, Gemma2Config
from martlet.models.gemma3 import Gemma3, Gemma3Config
from martlet.models.glm import Glm, GlmConfig
from martlet.models.glm4 import Glm4
from martlet.models.gpt2 import GPT2, GPT2Config
from martlet.models.gpt_neox import GPTNeoX, GPTNeoXConfig
from martlet.models.gptj import GPTJ, GPTJConfig
from martlet.models.llama import Llama, LlamaConfig
from martlet.models.minicpm import MiniCPM, MiniCPMConfig
from martlet.models.minicpm3 import MiniCPM3, MiniCPM3Config
from martlet.models.mistral import Mistral, MistralConfig
from martlet.models.phi3 import Phi3, Phi3Config
from martlet.models.qwen2 import Qwen2, Qwen2Config
from martlet.models.qwen3 import Qwen3, Qwen3Config
from martlet.models.t5 import T5, T5Config

__all__ = ["load_architecture"]

# One line an architecture, by the model_type of Hugging Face.
_ARCHITECTURES: Mapping[str, Callable[[Mapping[str, Any]], Architecture]] = {
    "bloom": lambda config: Bloom(BloomConfig.from_fields(config)),
    "gemma": lambda config: Gemma(GemmaConfig.from_fields(config)),
    "gemma2": lambda config: Gemma2(Gemma2Config.from_fields(config)),
    "gemma3": lambda config: Gemma3(Gemma3Config.from_fields(config)),
    "gemma3_text": lambda config: Gemma3(Gemma3Config.from_fields(config)),
    "glm": lambda config: Glm(GlmConfig.from_fields(config)),
    "glm4": lambda config: Glm4(GlmConfig.from_fields(config)),
    "gpt2": lambda config: GPT2(GPT2Config.from_fields(config)),
    "gpt_neox": lambda config: GPTNeoX(GPTNeoXConfig.from_fields(config)),
    "gptj": lambda config: GPTJ(GPTJConfig.from_fields(config)),
    "llama": lambda config: Llama(LlamaConfig.from_fields(config)),
    "minicpm": lambda config: MiniCPM(MiniCPMConfig.from_fields(config)),
    "minicpm3": lambda config: MiniCPM3(MiniCPM3Config.from_fields(config)),
    "mistral": lambda config: Mistral(MistralConfig.from_fields(config)),
    "mt5": lambda config: T5(T5Config.from_fields(config)),
    "phi3": lambda config: Phi3(Phi3Config.from_fields(config)),
    "qwen2": lambda config: Qwen2(Qwen2Config.from_fields(config)),
    "qwen3": lambda config: Qwen3(Qwen3Config.from_fields(config)),
    "t5": lambda config: T5(T5Config.from_fields(config)),
}


def load_architecture(config: Mapping[str, Any], location: Path | None = None) -> Architecture:
    """The architecture that a config.json describes.

    ``location`` is where it was read, which errors then begin with.

    Raises:
        ModelFileError: the model type is unknown, a field is missing or malformed, or a field asks
            for something that would change results and is not implemented.
    """
    try:
        return _load(config)
    except ModelFileError as error:
        if location is None:
            raise
        raise ModelFileError(f"{location}: {error}") from None


def _load(config: Mapping[str, Any]) -> Architecture:
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in _ARCHITECTURES:
        known = ", ".join(sorted(_ARCHITECTURES))
        shown = repr(model_type)[:60]
        raise ModelFileError(
            f"config.json has model_type {shown}; supported are {known}; take a model of one of "
            "these (code that comes with a model is never run)"
        )
    return _ARCHITECTURES[model_type](config)
