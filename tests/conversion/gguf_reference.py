"""Tiny models of transformers to be written as GGUF files, and such files opened by us."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from martlet.conversion.gguf import GGUFSource
from martlet.models.config import load_architecture

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from oracle_routes import Model

__all__ = ["opened", "reference"]

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


def reference(name: str, **options: Any) -> Any:
    config_class = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_class)(**{**SIZES, **options})
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    with torch.inference_mode(False):
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)
    for key, value in model.state_dict().items():
        if value.ndim == 2:
            value.normal_(0, 1.0 if "embed" in key else 1.2 * value.shape[1] ** -0.5)
        else:
            value.add_(torch.randn(value.shape) * 0.2)
    return model


def opened(path: Path) -> Model:
    source = GGUFSource(path)
    architecture = load_architecture(source.config)
    blocks = {}
    for block in architecture.block_specs():
        weights = {}
        for spec in block.tensors:
            name = block.prefix + spec.name
            assert source.shape(name) == spec.shape
            weight = source.tensor(name)
            form = source.stored_as(name).form
            assert (weight.dtype if isinstance(weight, Tensor) else weight.format) == form
            assert tuple(weight.shape) == spec.shape
            weights[spec.name] = weight.clone() if isinstance(weight, Tensor) else weight
        blocks[block.name] = weights
    return Model(architecture, blocks)
