"""Every family and variant that is compared with transformers: by the tests, and for the table.

Sizes are tiny and odd, windows shorter than the texts, soft-caps small enough to bend what they
cap.
"""

from __future__ import annotations

from collections.abc import Mapping

from oracle_llama_variants import LLAMA_FAMILIES, LLAMA_VARIANTS
from oracle_variant import (
    DIVISIBLE,
    GROUPED,
    MODERN,
    Family,
    Variant,
    longrope,
    rope,
)

__all__ = ["FAMILIES", "VARIANTS", "Family", "Variant", "variants_of"]

_GEMMA = {**GROUPED, "head_dim": 14}
# Four layers, so that there are two of a kind, and texts go over the edge of the window.
_WINDOWS = {"num_hidden_layers": 4, "sliding_window": 5, "query_pre_attn_scalar": 20}
_SQRT_48 = 48**0.5

FAMILIES: Mapping[str, Family] = {
    "bloom": Family(
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 101, "hidden_size": 48, "n_layer": 3, "n_head": 4, "seq_length": 1600},
        {"hidden_size": 96},
    ),
    "gemma": Family(
        "GemmaConfig", "GemmaForCausalLM", _GEMMA, DIVISIBLE, _SQRT_48, norm_center=0.0
    ),
    "gemma2": Family(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_GEMMA, **_WINDOWS, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0},
        DIVISIBLE,
        _SQRT_48,
        norm_center=0.0,
    ),
    "gemma3": Family(
        "Gemma3Config",
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**_GEMMA, **_WINDOWS, "sliding_window_pattern": 3},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 8,
                "intermediate_size": 8,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 8,
                "patch_size": 4,
            },
            "mm_tokens_per_image": 4,
            "image_token_index": 262144,
        },
        {},
        _SQRT_48,
        norm_center=0.0,
    ),
    "gemma3_text": Family(
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        {**_GEMMA, **_WINDOWS, "sliding_window_pattern": 3},
        DIVISIBLE,
        _SQRT_48,
        norm_center=0.0,
    ),
    "glm": Family("GlmConfig", "GlmForCausalLM", {**GROUPED, "head_dim": 12}, DIVISIBLE),
    "glm4": Family("Glm4Config", "Glm4ForCausalLM", {**GROUPED, "head_dim": 12}, DIVISIBLE),
    "gpt_neox": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", {**MODERN, "num_attention_heads": 3}, DIVISIBLE
    ),
    "gpt2": Family(
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": 101,
            "n_positions": 320,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 3,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        {"n_embd": 96},
    ),
    "gptj": Family(
        "GPTJConfig",
        "GPTJForCausalLM",
        {
            "vocab_size": 101,
            "n_positions": 1600,
            "n_embd": 48,
            "n_layer": 3,
            "n_head": 3,
            "rotary_dim": 6,
            "bos_token_id": 0,
            "eos_token_id": 0,
        },
        {"n_embd": 96},
    ),
    **LLAMA_FAMILIES,
    "phi3": Family("Phi3Config", "Phi3ForCausalLM", GROUPED, DIVISIBLE),
}


_PARTIAL = {"partial_rotary_factor": 0.5}

VARIANTS: tuple[Variant, ...] = (
    *LLAMA_VARIANTS,
    Variant("bloom", "plain", long_tokens=1500),
    Variant("bloom", "heads no power of two", {"n_head": 6}),
    Variant(
        "bloom", "untied head, large eps", {"tie_word_embeddings": False, "layer_norm_epsilon": 0.3}
    ),
    Variant("gemma", "plain", long_tokens=1500),
    Variant(
        "gemma",
        "one key head, untied head",
        {"num_key_value_heads": 1, "tie_word_embeddings": False},
    ),
    Variant("gemma", "attention bias, other base", {"attention_bias": True, **rope("default")}),
    Variant("gemma2", "windows, soft-caps", long_tokens=1500),
    Variant(
        "gemma2",
        "windows, no soft-caps",
        {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    ),
    Variant("gemma2", "window longer than the text", {"sliding_window": 40}),
    Variant(
        "gemma2",
        "own kinds of layers, bias, untied head",
        {
            "layer_types": ["full_attention", *["sliding_attention"] * 3],
            "attention_bias": True,
            "tie_word_embeddings": False,
        },
    ),
    Variant("gemma3", "text of a model with a vision tower"),
    Variant("gemma3_text", "windows, two bases", long_tokens=1500),
    Variant(
        "gemma3_text",
        "linear rope in full layers",
        {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            }
        },
    ),
    Variant(
        "gemma3_text",
        "final soft-cap, untied head",
        {"final_logit_softcapping": 3.0, "tie_word_embeddings": False},
    ),
    Variant("glm", "plain", long_tokens=1500),
    Variant(
        "glm",
        "no attention bias, all of a head turned",
        {"attention_bias": False, **rope("default", partial_rotary_factor=1.0)},
    ),
    Variant(
        "glm", "tied head, one key head", {"tie_word_embeddings": True, "num_key_value_heads": 1}
    ),
    Variant("glm4", "plain", long_tokens=1500),
    Variant("glm4", "no attention bias", {"attention_bias": False}),
    Variant(
        "glm4",
        "tied head, other base",
        {"tie_word_embeddings": True, **rope("default", **_PARTIAL)},
    ),
    Variant("gpt_neox", "plain", long_tokens=1500),
    Variant("gpt_neox", "one half after the other", {"use_parallel_residual": False}),
    Variant("gpt_neox", "half of a head turned, other base", rope("default", **_PARTIAL)),
    Variant(
        "gpt_neox",
        "no attention bias, tied head",
        {"attention_bias": False, "tie_word_embeddings": True},
    ),
    Variant(
        "gpt_neox",
        "gelu_fast, linear rope",
        {"hidden_act": "gelu_fast", **rope("linear", factor=3.0, **_PARTIAL)},
    ),
    Variant("gpt2", "plain", long_tokens=300),
    Variant(
        "gpt2",
        "untied head, exact gelu, own n_inner",
        {"tie_word_embeddings": False, "activation_function": "gelu", "n_inner": 77},
    ),
    Variant("gpt2", "scores by layer", {"scale_attn_by_inverse_layer_idx": True}),
    Variant("gptj", "plain", long_tokens=1500),
    Variant("gptj", "all of a head turned, own n_inner", {"rotary_dim": 16, "n_inner": 77}),
    Variant("gptj", "tied head", {"tie_word_embeddings": True}),
    Variant("gptj", "relu, large eps", {"activation_function": "relu", "layer_norm_epsilon": 0.3}),
    Variant("phi3", "plain", long_tokens=1500),
    Variant("phi3", "window", {"sliding_window": 5}, long_tokens=300),
    Variant("phi3", "longrope, short text", longrope(64, 6)),
    Variant("phi3", "longrope, long text", longrope(4, 6), long_tokens=1500),
    Variant(
        "phi3",
        "longrope, half of a head turned, tied head",
        {**longrope(4, 3, **_PARTIAL), "tie_word_embeddings": True},
    ),
)


def variants_of(family: str) -> list[Variant]:
    """All of one family."""
    return [variant for variant in VARIANTS if variant.family == family]
