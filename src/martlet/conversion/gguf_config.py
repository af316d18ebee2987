"""config.json of a GGUF file: its keys under the names that Hugging Face gives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from martlet.conversion.gguf_keys import ArchitectureKeys
from martlet.conversion.gguf_tensors import GGUFTensors
from martlet.errors import ModelFileError
from martlet.models.gemma3 import SLIDING_PATTERN, SLIDING_THETA

__all__ = ["ARCHITECTURES", "gguf_config"]

Config = dict[str, Any]

# llama.cpp takes the scale of queries of these sizes of Gemma from the width of the model; the
# files do not have it.
_GEMMA2_27B_LAYERS, _GEMMA3_27B_LAYERS = 46, 62
_MINICPM_BASE_WIDTH, _MINICPM_EMBEDDING, _MINICPM_DEPTH = 256, 12.0, 1.4


def gguf_config(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    """Our config.json for a model, Hugging Face's names for the fields of its architecture.

    Raises:
        ModelFileError: an architecture that is not supported, or a key that is missing, malformed
            or not known.
    """
    translate = ARCHITECTURES.get(keys.architecture)
    if translate is None:
        raise ModelFileError(
            f"{keys.path}: general.architecture is {keys.architecture[:40]!r}, which is not "
            f"supported; supported are {', '.join(ARCHITECTURES)}"
        )
    keys.require("expert_count", 0)
    config = translate(keys, tensors)
    keys.refuse_unknown()
    return config


def _common(keys: ArchitectureKeys, tensors: GGUFTensors, model_type: str) -> Config:
    """What all of them have; the rotation too."""
    hidden_size = keys.size("embedding_length")
    num_heads = keys.size("attention.head_count")
    head_dim = keys.size("attention.key_length", max(1, hidden_size // num_heads))
    if keys.size("attention.value_length", head_dim) != head_dim:
        raise keys.bad("attention.value_length", keys.value("attention.value_length"), "key_length")
    vocab_size, columns = tensors.shape("token_embd.weight", 2)
    if columns != hidden_size:
        raise keys.bad("embedding_length", hidden_size, f"{columns}, as token_embd.weight has it")
    dtype = "float32" if tensors.type_of("blk.0.attn_output.weight") == "F32" else "bfloat16"
    config: Config = {
        "model_type": model_type,
        "dtype": dtype,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": keys.size("feed_forward_length"),
        "num_hidden_layers": keys.size("block_count"),
        "num_attention_heads": num_heads,
        "num_key_value_heads": keys.size("attention.head_count_kv", num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": keys.size("context_length"),
        "rms_norm_eps": keys.number("attention.layer_norm_rms_epsilon"),
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    config["rope_parameters"] = _rope(keys, tensors, config)
    return config


def _rope(keys: ArchitectureKeys, tensors: GGUFTensors, config: Config) -> Config:
    """The settings of the rotation, as transformers 5 calls them."""
    rope: Config = {"rope_theta": keys.number("rope.freq_base", 10_000.0), "rope_type": "default"}
    if keys.has("rope.dimension_count"):
        share = _share(keys.size("rope.dimension_count"), config["head_dim"])
        rope["partial_rotary_factor"] = share
    scaling = ("none", "linear", "yarn", "longrope")
    usual = "linear" if keys.has("rope.scale_linear") else "none"
    kind = keys.word("rope.scaling.type", usual, scaling)
    old_factor = keys.number("rope.scale_linear", 1.0)
    factor = keys.number("rope.scaling.factor", old_factor) if kind != "none" else 1.0
    trained = keys.size("rope.scaling.original_context_length", config["max_position_embeddings"])
    attention_factor = None
    if keys.has("rope.scaling.attn_factor"):
        attention_factor = keys.number("rope.scaling.attn_factor")
    if kind == "linear" and factor != 1.0:
        rope.update(rope_type="linear", factor=factor)
    elif kind == "yarn":
        rope.update(rope_type="yarn", factor=factor, original_max_position_embeddings=trained)
        _yarn(keys, rope)
        if attention_factor is not None:  # on top of what yarn has by itself
            attention_factor *= 0.1 * math.log(factor) + 1.0
    factors = tensors.factors("rope_freqs.weight")
    long, short = (tensors.factors(f"rope_factors_{part}.weight") for part in ("long", "short"))
    if factors is not None:
        # Factors for every length, such as those of Llama 3.1: the file has no other trace of them.
        long = short = factors
        attention_factor = 1.0
    if long is not None and short is not None:
        if rope["rope_type"] != "default":
            raise keys.bad("rope.scaling.type", kind, "longrope where the file has factors")
        rope.update(
            rope_type="longrope",
            short_factor=short,
            long_factor=long,
            original_max_position_embeddings=trained,
            factor=config["max_position_embeddings"] / trained,
        )
    if attention_factor is not None and rope["rope_type"] != "default":
        rope["attention_factor"] = attention_factor
    return rope


def _share(turned: int, head_dim: int) -> float:
    """The share of a head that turns; times the size of the head it is no less than what turns."""
    share = turned / head_dim
    return share if head_dim * share >= turned else math.nextafter(share, 2.0)


def _yarn(keys: ArchitectureKeys, rope: Config) -> None:
    for name in ("beta_fast", "beta_slow"):
        if keys.has(f"rope.scaling.yarn_{name}"):
            rope[name] = keys.number(f"rope.scaling.yarn_{name}")


def _llama(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    config = _common(keys, tensors, "llama")
    config["hidden_act"] = "silu"
    if keys.has("attention.sliding_window") and keys.value("attention.sliding_window") != 0:
        config["model_type"] = "mistral"
        config["sliding_window"] = keys.size("attention.sliding_window")
    if "blk.0.attn_q.bias" in tensors:
        config["attention_bias"] = True
    return config


def _qwen2(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    return {**_common(keys, tensors, "qwen2"), "hidden_act": "silu", "use_sliding_window": False}


def _qwen3(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    has_bias = "blk.0.attn_q.bias" in tensors
    config = _common(keys, tensors, "qwen3")
    return {**config, "hidden_act": "silu", "use_sliding_window": False, "attention_bias": has_bias}


def _gemma(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    config = _common(keys, tensors, "gemma")
    return {**config, "hidden_act": "gelu_pytorch_tanh", "attention_bias": False}


def _gemma2(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    config = _capped_gemma(keys, tensors, "gemma2", _GEMMA2_27B_LAYERS)
    config["sliding_window"] = keys.size("attention.sliding_window", 4096)
    return config


def _gemma3(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    config = _capped_gemma(keys, tensors, "gemma3_text", _GEMMA3_27B_LAYERS)
    config["sliding_window"] = keys.size("attention.sliding_window", 1024)
    pattern = keys.value("attention.sliding_window_pattern")
    num_layers = config["num_hidden_layers"]
    if isinstance(pattern, list) and len(pattern) == num_layers:
        windows = [bool(value) for value in pattern]
    elif pattern is None or type(pattern) is int:
        period = keys.size("attention.sliding_window_pattern", SLIDING_PATTERN)
        windows = [(index + 1) % period != 0 for index in range(num_layers)]
    else:
        raise keys.bad("attention.sliding_window_pattern", pattern, "a number or a flag a layer")
    config["layer_types"] = [f"{'sliding' if near else 'full'}_attention" for near in windows]
    local = keys.number("rope.freq_base_swa", SLIDING_THETA)
    config["rope_parameters"] = {
        "full_attention": config["rope_parameters"],
        "sliding_attention": {"rope_theta": local, "rope_type": "default"},
    }
    return config


def _capped_gemma(
    keys: ArchitectureKeys, tensors: GGUFTensors, model_type: str, layers_of_27b: int
) -> Config:
    config = _common(keys, tensors, model_type)
    is_27b = config["num_hidden_layers"] == layers_of_27b
    width = config["hidden_size"] // config["num_attention_heads"]
    config["query_pre_attn_scalar"] = width if is_27b else config["head_dim"]
    config.update(hidden_activation="gelu_pytorch_tanh", attention_bias=False)
    for field, key in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        config[field] = keys.number(key) if keys.has(key) else None
    return config


def _phi3(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    config = _common(keys, tensors, "phi3")
    config["hidden_act"] = "silu"
    config["original_max_position_embeddings"] = keys.size(
        "rope.scaling.original_context_length", config["max_position_embeddings"]
    )
    window = keys.value("attention.sliding_window")
    config["sliding_window"] = keys.size("attention.sliding_window") if window else None
    return config


def _minicpm(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    config = _common(keys, tensors, "minicpm")
    root = math.sqrt(config["num_hidden_layers"])
    logit_scale = keys.number("logit_scale", config["hidden_size"] / _MINICPM_BASE_WIDTH)
    residual_scale = keys.number("residual_scale", _MINICPM_DEPTH / root)
    config.update(
        hidden_act="silu",
        scale_emb=keys.number("embedding_scale", _MINICPM_EMBEDDING),
        scale_depth=residual_scale * root,
        dim_model_base=round(config["hidden_size"] / logit_scale),
    )
    return config


def _glm(keys: ArchitectureKeys, tensors: GGUFTensors) -> Config:
    model_type = "glm" if keys.architecture == "chatglm" else keys.architecture
    config = _common(keys, tensors, model_type)
    has_bias = "blk.0.attn_q.bias" in tensors or "blk.0.attn_qkv.bias" in tensors
    return {**config, "hidden_act": "silu", "attention_bias": has_bias}


ARCHITECTURES: Mapping[str, Callable[[ArchitectureKeys, GGUFTensors], Config]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "minicpm": _minicpm,
    "chatglm": _glm,
    "glm4": _glm,
}
"""By ``general.architecture``; Mistral's models are "llama" there."""
