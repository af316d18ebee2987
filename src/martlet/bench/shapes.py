"""The sizes of published models, to be measured with random weights.

Speed depends on sizes alone, so nothing has to be downloaded to know how fast a model would be.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from martlet.errors import ModelFileError, UsageError

__all__ = ["SHAPES", "Shape", "find_shape"]


@dataclass(frozen=True)
class Shape:
    """A model without its weights: the fields of its config.json, under a name.

    ``family`` decides the float type on a GPU, as it does for a model folder.
    """

    name: str
    family: str
    config: Mapping[str, Any]


_T5 = {
    "model_type": "t5",
    "d_kv": 64,
    "num_layers": 24,
    "num_decoder_layers": 24,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
_LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
}

_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151936,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
}

# Parameters: 11.09, 2.60, 2.84, 8.03, 6.74, 11.31, 8.19, 14.77 and 32.76 thousand million.
_ALL = (
    Shape(
        "cpm2-11b",
        "cpm2",
        {**_T5, "vocab_size": 26240, "d_model": 4096, "d_ff": 10240, "num_heads": 64},
    ),
    Shape(
        "cpm1",
        "cpm1",
        {
            "model_type": "gpt2",
            "vocab_size": 30000,
            "n_positions": 1024,
            "n_embd": 2560,
            "n_layer": 32,
            "n_head": 32,
        },
    ),
    # EVA 2.0 xLarge; EVA 1.0 has the same matrices.
    Shape(
        "eva",
        "eva",
        {
            **_T5,
            "vocab_size": 30000,
            "d_model": 2048,
            "d_ff": 5120,
            "num_heads": 32,
            "attn_scale": True,
        },
    ),
    Shape(
        "llama-8b",
        "llama",
        {
            **_LLAMA,
            "vocab_size": 128256,
            "intermediate_size": 14336,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
            "rope_theta": 500000.0,
        },
    ),
    Shape(
        "llama-7b",
        "llama",
        {
            **_LLAMA,
            "vocab_size": 32000,
            "intermediate_size": 11008,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
        },
    ),
    Shape(
        "t5-11b",
        "t5",
        {
            **_T5,
            "vocab_size": 32128,
            "d_model": 1024,
            "d_kv": 128,
            "d_ff": 65536,
            "num_heads": 128,
            "feed_forward_proj": "relu",
            "tie_word_embeddings": True,
        },
    ),
    Shape(
        "qwen3-8b",
        "qwen3",
        {
            **_QWEN3,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 36,
            "num_attention_heads": 32,
        },
    ),
    Shape(
        "qwen3-14b",
        "qwen3",
        {
            **_QWEN3,
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
        },
    ),
    Shape(
        "qwen3-32b",
        "qwen3",
        {
            **_QWEN3,
            "hidden_size": 5120,
            "intermediate_size": 25600,
            "num_hidden_layers": 64,
            "num_attention_heads": 64,
        },
    ),
)

SHAPES: Mapping[str, Shape] = {shape.name: shape for shape in _ALL}
"""The shapes that have a name."""


def find_shape(name: str) -> Shape:
    """The shape of that name, or the one that a config.json at that path describes.

    Raises:
        UsageError: neither a known name nor a readable file ending in .json.
        ModelFileError: the file is no JSON object.
    """
    if name in SHAPES:
        return SHAPES[name]
    if not name.endswith(".json"):
        raise UsageError(
            f"--shape is {name!r:.60}; it must be one of {', '.join(SHAPES)}, "
            "or the path of a config.json"
        )
    try:
        config = json.loads(Path(name).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--shape {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ModelFileError(f"{name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelFileError(f"{name} holds no JSON object; a config.json is expected")
    return Shape(name, str(config.get("model_type")), config)
