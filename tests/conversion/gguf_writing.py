"""Writes models of transformers as GGUF files, as llama.cpp's converter does, by the gguf package.

The modules beside the tests are no package: they import each other by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

__all__ = ["add_byte_tokens", "llama3_factors", "write_gguf"]

Extra = Callable[[gguf.GGUFWriter], None]


def write_gguf(
    model: Any,
    path: Path,
    architecture: str,
    *,
    matrices: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    extra: Extra | None = None,
    skip: Collection[str] = (),
) -> Path:
    """The model's weights and settings as one file.

    ``matrices`` is the type of everything with two axes; ``extra`` adds keys and tensors that only
    this architecture has.
    """
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    add_settings(writer, config)
    if extra is not None:
        extra(writer)
    names = gguf.get_tensor_name_map(
        getattr(gguf.MODEL_ARCH, architecture.upper()), config.num_hidden_layers
    )
    is_tied = bool(getattr(config, "tie_word_embeddings", False))
    for name, value in model.state_dict().items():
        if name in skip or (name == "lm_head.weight" and is_tied):
            continue
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, name
        data = changed(architecture, name, value.to(torch.float32), config).numpy()
        if data.ndim == 1:
            writer.add_tensor(found, data)
        else:
            writer.add_tensor(found, gguf.quants.quantize(data, matrices), raw_dtype=matrices)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def add_settings(writer: gguf.GGUFWriter, config: Any) -> None:
    """The keys that every architecture has."""
    head_dim = getattr(config, "head_dim", None) or (
        config.hidden_size // config.num_attention_heads
    )
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    rope = rope_settings(config)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))


def rope_settings(config: Any) -> dict[str, Any]:
    """The settings of the rotation of full attention."""
    rope: dict[str, Any] = config.rope_parameters
    return dict(rope.get("full_attention", rope))


def changed(architecture: str, name: str, value: Tensor, config: Any) -> Tensor:
    """What the converter does to some tensors."""
    if architecture in ("llama", "minicpm"):
        for part, heads in (
            ("q_proj", config.num_attention_heads),
            ("k_proj", config.num_key_value_heads),
        ):
            if part in name:
                halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
                return halves.swapaxes(1, 2).reshape(value.shape)
    if architecture.startswith("gemma") and name.endswith("norm.weight"):
        return value + 1
    return value


def add_byte_tokens(writer: gguf.GGUFWriter, vocab_size: int) -> None:
    """A vocabulary of single bytes, filled up with unused tokens."""
    alphabet = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in alphabet}
    others = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    tokens = [*(letters[byte] for byte in range(256)), "<|end|>"]
    unused = [f"[PAD{index}]" for index in range(vocab_size - len(tokens))]
    kinds = [gguf.TokenType.NORMAL] * 256 + [gguf.TokenType.CONTROL]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens + unused)
    writer.add_token_types(list(map(int, kinds + [gguf.TokenType.UNUSED] * len(unused))))
    writer.add_eos_token_id(256)


def llama3_factors(rope: Mapping[str, Any], head_dim: int) -> np.ndarray[Any, Any]:
    """The tensor that stands for the rope scaling of Llama 3.1."""
    trained = rope["original_max_position_embeddings"]
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    factors = []
    for index in range(0, head_dim, 2):
        wave = 2 * math.pi * rope["rope_theta"] ** (index / head_dim)
        if wave < trained / high:
            factors.append(1.0)
        elif wave > trained / low:
            factors.append(factor)
        else:
            smooth = (trained / wave - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, dtype=np.float32)
