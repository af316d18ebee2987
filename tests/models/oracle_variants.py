"""Every family and variant that is compared with transformers: by the tests, and for the table.

Sizes are tiny and odd, windows shorter than the texts, soft-caps small enough to bend what they
cap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["FAMILIES", "VARIANTS", "Family", "Variant", "variants_of"]

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A model_type: transformers' classes for it, and what all its variants begin with.

    ``embedding_scale`` is what the model multiplies embeddings by, so that the random ones are
    made that much smaller. ``norm_center`` is where the weights of norms lie: 0 where the file
    keeps their difference to 1. ``divisible`` are sizes whose matrices the int8 kernels take.
    """

    config: str
    model: str
    sizes: Options
    divisible: Options
    embedding_scale: float = 1.0
    norm_center: float = 1.0


@dataclass(frozen=True)
class Variant:
    """One configuration; ``long_tokens`` asks for a text of that length besides the short ones.

    ``words`` stand in the table.
    """

    family: str
    words: str
    options: Options = field(default_factory=dict)
    long_tokens: int | None = None

    @property
    def id(self) -> str:
        """A name for the test."""
        return f"{self.family}-{self.words.replace(' ', '-')}"


_MODERN = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 77,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1600,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_GROUPED = {**_MODERN, "num_key_value_heads": 2}
_GEMMA = {**_GROUPED, "head_dim": 14}
# Four layers, so that there are two of a kind, and texts go over the edge of the window.
_WINDOWS = {"num_hidden_layers": 4, "sliding_window": 5, "query_pre_attn_scalar": 20}
_DIVISIBLE = {"hidden_size": 96, "intermediate_size": 160}
_SQRT_48 = 48**0.5

FAMILIES: Mapping[str, Family] = {
    "bloom": Family(
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 101, "hidden_size": 48, "n_layer": 3, "n_head": 4, "seq_length": 1600},
        {"hidden_size": 96},
    ),
    "gemma": Family(
        "GemmaConfig", "GemmaForCausalLM", _GEMMA, _DIVISIBLE, _SQRT_48, norm_center=0.0
    ),
    "gemma2": Family(
        "Gemma2Config",
        "Gemma2ForCausalLM",
        {**_GEMMA, **_WINDOWS, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0},
        _DIVISIBLE,
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
        _DIVISIBLE,
        _SQRT_48,
        norm_center=0.0,
    ),
    "glm": Family("GlmConfig", "GlmForCausalLM", {**_GROUPED, "head_dim": 12}, _DIVISIBLE),
    "glm4": Family("Glm4Config", "Glm4ForCausalLM", {**_GROUPED, "head_dim": 12}, _DIVISIBLE),
    "gpt_neox": Family(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", {**_MODERN, "num_attention_heads": 3}, _DIVISIBLE
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
    "phi3": Family("Phi3Config", "Phi3ForCausalLM", _GROUPED, _DIVISIBLE),
}


def _rope(rope_type: str, **settings: Any) -> Options:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 500.0, **settings}}


def _longrope(original: int, num_pairs: int, **settings: Any) -> Options:
    """Long factors are in force where a text or its cache is longer than ``original``."""
    factors = {
        "short_factor": [1.0 + 0.1 * pair for pair in range(num_pairs)],
        "long_factor": [2.0 + 1.5 * pair for pair in range(num_pairs)],
        "original_max_position_embeddings": original,
    }
    return {
        **_rope("longrope", **factors, **settings),
        "original_max_position_embeddings": original,
    }


_PARTIAL = {"partial_rotary_factor": 0.5}

VARIANTS: tuple[Variant, ...] = (
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
    Variant("gemma", "attention bias, other base", {"attention_bias": True, **_rope("default")}),
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
        {"attention_bias": False, **_rope("default", partial_rotary_factor=1.0)},
    ),
    Variant(
        "glm", "tied head, one key head", {"tie_word_embeddings": True, "num_key_value_heads": 1}
    ),
    Variant("glm4", "plain", long_tokens=1500),
    Variant("glm4", "no attention bias", {"attention_bias": False}),
    Variant(
        "glm4",
        "tied head, other base",
        {"tie_word_embeddings": True, **_rope("default", **_PARTIAL)},
    ),
    Variant("gpt_neox", "plain", long_tokens=1500),
    Variant("gpt_neox", "one half after the other", {"use_parallel_residual": False}),
    Variant("gpt_neox", "half of a head turned, other base", _rope("default", **_PARTIAL)),
    Variant(
        "gpt_neox",
        "no attention bias, tied head",
        {"attention_bias": False, "tie_word_embeddings": True},
    ),
    Variant(
        "gpt_neox",
        "gelu_fast, linear rope",
        {"hidden_act": "gelu_fast", **_rope("linear", factor=3.0, **_PARTIAL)},
    ),
    Variant("gptj", "plain", long_tokens=1500),
    Variant("gptj", "all of a head turned, own n_inner", {"rotary_dim": 16, "n_inner": 77}),
    Variant("gptj", "tied head", {"tie_word_embeddings": True}),
    Variant("gptj", "relu, large eps", {"activation_function": "relu", "layer_norm_epsilon": 0.3}),
    Variant("phi3", "plain", long_tokens=1500),
    Variant("phi3", "window", {"sliding_window": 5}, long_tokens=300),
    Variant("phi3", "longrope, short text", _longrope(64, 6)),
    Variant("phi3", "longrope, long text", _longrope(4, 6), long_tokens=1500),
    Variant(
        "phi3",
        "longrope, half of a head turned, tied head",
        {**_longrope(4, 3, **_PARTIAL), "tie_word_embeddings": True},
    ),
)


def variants_of(family: str) -> list[Variant]:
    """All of one family."""
    return [variant for variant in VARIANTS if variant.family == family]
