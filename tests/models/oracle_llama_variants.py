"""The variants of Llama and its nearest heirs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from oracle_variant import DIVISIBLE, GROUPED, Family, Variant, longrope, rope

__all__ = ["LLAMA_FAMILIES", "LLAMA_VARIANTS"]


def _minicpm(config: dict[str, Any]) -> dict[str, Any]:
    """Granite's multipliers in the words of MiniCPM 1, 2 and 4."""
    assert config.pop("attention_multiplier") == _ATTENTION_SCALE
    assert not config.pop("mlp_bias", False)
    own = {
        "model_type": "minicpm",
        "scale_emb": config.pop("embedding_multiplier"),
        "scale_depth": config.pop("residual_multiplier") * config["num_hidden_layers"] ** 0.5,
        "dim_model_base": config["hidden_size"] / config.pop("logits_scaling"),
        "mup_denominator": 32,
    }
    return {**config, **own}


_ATTENTION_SCALE = 12**-0.5
_LATENT = {
    "q_lora_rank": 20,
    "kv_lora_rank": 24,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
    "scale_emb": 3.0,
    "scale_depth": 1.1,
    "dim_model_base": 120,
    "num_key_value_heads": 4,
}
_WINDOWS = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}

LLAMA_FAMILIES: Mapping[str, Family] = {
    "llama": Family("LlamaConfig", "LlamaForCausalLM", GROUPED, DIVISIBLE),
    "minicpm": Family(
        "GraniteConfig",
        "GraniteForCausalLM",
        {
            **GROUPED,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.4,
            "attention_multiplier": _ATTENTION_SCALE,
            "logits_scaling": 0.4,
        },
        {},
        3.0,
        renamed=_minicpm,
    ),
    "minicpm3": Family(
        "MiniCPM3Config",
        "MiniCPM3ForCausalLM",
        {**GROUPED, **_LATENT},
        {**DIVISIBLE, "q_lora_rank": 32, "kv_lora_rank": 48, "qk_nope_head_dim": 26},
        3.0,
    ),
    "mistral": Family(
        "MistralConfig", "MistralForCausalLM", {**GROUPED, "sliding_window": 5}, DIVISIBLE
    ),
    "qwen2": Family("Qwen2Config", "Qwen2ForCausalLM", GROUPED, DIVISIBLE),
    "qwen3": Family("Qwen3Config", "Qwen3ForCausalLM", {**GROUPED, "head_dim": 14}, DIVISIBLE),
}

_YARN = rope("yarn", factor=4.0, original_max_position_embeddings=16)
_LLAMA3 = rope(
    "llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=32,
)

LLAMA_VARIANTS: tuple[Variant, ...] = (
    Variant("llama", "plain", long_tokens=1500),
    Variant("llama", "a key head a query head", {"num_key_value_heads": 4}),
    Variant(
        "llama", "one key head, tied head", {"num_key_value_heads": 1, "tie_word_embeddings": True}
    ),
    Variant("llama", "heads of a width of their own", {"head_dim": 22}),
    Variant("llama", "all biases", {"attention_bias": True, "mlp_bias": True}),
    Variant(
        "llama", "tanh gelu, large eps", {"hidden_act": "gelu_pytorch_tanh", "rms_norm_eps": 0.3}
    ),
    Variant("llama", "linear rope", rope("linear", factor=3.0), long_tokens=300),
    Variant("llama", "dynamic rope within them", rope("dynamic", factor=4.0)),
    Variant("llama", "yarn", _YARN, long_tokens=300),
    Variant(
        "llama",
        "yarn, all its settings",
        rope(
            "yarn",
            factor=4.0,
            original_max_position_embeddings=16,
            beta_fast=3.0,
            beta_slow=0.5,
            truncate=False,
            mscale=0.7,
            mscale_all_dim=1.3,
        ),
    ),
    Variant(
        "llama",
        "yarn, own attention factor",
        {"rope_parameters": {**_YARN["rope_parameters"], "attention_factor": 1.2}},
    ),
    Variant("llama", "llama3 rope", _LLAMA3, long_tokens=1500),
    Variant("llama", "longrope, long text", longrope(4, 6)),
    Variant("minicpm", "plain", long_tokens=1500),
    Variant(
        "minicpm",
        "attention bias, tied head",
        {"attention_bias": True, "tie_word_embeddings": True},
    ),
    Variant("minicpm", "longrope, long text", longrope(4, 6, attention_factor=1.0)),
    Variant("minicpm", "longrope, short text", longrope(64, 6)),
    Variant("minicpm3", "plain", long_tokens=1500),
    Variant(
        "minicpm3",
        "queries of the hidden state, untied head",
        {"q_lora_rank": None, "tie_word_embeddings": False},
    ),
    Variant(
        "minicpm3",
        "all biases, values as wide as keys",
        {"attention_bias": True, "mlp_bias": True, "v_head_dim": 16},
    ),
    Variant("minicpm3", "longrope, long text", longrope(4, 3)),
    Variant("mistral", "window", long_tokens=1500),
    Variant("mistral", "window longer than the text", {"sliding_window": 40}),
    Variant("mistral", "no window, own head width", {"sliding_window": None, "head_dim": 22}),
    Variant("qwen2", "plain", long_tokens=1500),
    Variant("qwen2", "windows in the last layers", _WINDOWS, long_tokens=300),
    Variant(
        "qwen2",
        "own kinds of layers, tied head",
        {
            **_WINDOWS,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "tie_word_embeddings": True,
        },
    ),
    Variant("qwen2", "yarn", _YARN),
    Variant("qwen3", "plain", long_tokens=1500),
    Variant(
        "qwen3", "attention bias, tied head", {"attention_bias": True, "tie_word_embeddings": True}
    ),
    Variant("qwen3", "windows in the last layers", _WINDOWS),
    Variant("qwen3", "yarn, large eps", {**_YARN, "rms_norm_eps": 0.1}),
)
