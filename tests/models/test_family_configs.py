"""Fields of the families' config.json by all their names, and those that are refused by name."""

import re
from typing import Any

import pytest

from martlet.errors import ModelFileError
from martlet.models.config import load_architecture

SIZES = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 20,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 64,
}
GPTJ = {
    "model_type": "gptj",
    "vocab_size": 50,
    "n_positions": 64,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 4,
    "rotary_dim": 4,
}
NEOX = {key: SIZES[key] for key in SIZES if key not in ("num_key_value_heads", "head_dim")}
NEOX |= {"model_type": "gpt_neox", "rotary_pct": 0.5}
BLOOM = {"model_type": "bloom", "vocab_size": 50, "hidden_size": 48, "n_layer": 2, "n_head": 4}
PHI3 = {**SIZES, "model_type": "phi3"}
GEMMA = {**SIZES, "model_type": "gemma"}
GEMMA2 = {**SIZES, "model_type": "gemma2"}
GEMMA3 = {**SIZES, "model_type": "gemma3_text"}
GLM = {**SIZES, "model_type": "glm"}
GLM4 = {**SIZES, "model_type": "glm4"}
FACTORS = {"short_factor": [1.0] * 6, "long_factor": [2.0] * 6}
FULL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 500.0}
SLIDING = {"rope_type": "default", "rope_theta": 300.0}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            {**NEOX, "rotary_pct": 0.5, "rotary_emb_base": 500},
            {**NEOX, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 500.0}},
        ),
        ({**NEOX, "hidden_act": "gelu_fast"}, {**NEOX, "hidden_act": "gelu_new"}),
        (BLOOM, {**BLOOM, "n_embed": 48, "num_attention_heads": 4, "pretraining_tp": 4}),
        (
            {
                **PHI3,
                "original_max_position_embeddings": 16,
                "rope_theta": 500.0,
                "rope_scaling": {"type": "su", **FACTORS},
            },
            {
                **PHI3,
                "original_max_position_embeddings": 16,
                "rope_parameters": {"rope_type": "longrope", "rope_theta": 500.0, **FACTORS},
            },
        ),
        (
            {**PHI3, "partial_rotary_factor": 0.5},
            {**PHI3, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_type": "default"}},
        ),
        ({**GEMMA, "hidden_act": "gelu"}, {**GEMMA, "hidden_activation": "gelu_pytorch_tanh"}),
        (
            {
                **GEMMA3,
                "rope_theta": 500.0,
                "rope_local_base_freq": 300.0,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
                "sliding_window_pattern": 3,
            },
            {
                **GEMMA3,
                "rope_parameters": {"full_attention": FULL, "sliding_attention": SLIDING},
                "layer_types": [
                    *("sliding_attention", "sliding_attention"),
                    *("full_attention", "sliding_attention"),
                ],
            },
        ),
        (
            GLM,
            {**GLM, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_type": "default"}},
        ),
    ],
    ids=lambda config: str(config["model_type"]),
)
def test_both_spellings_ask_for_the_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert load_architecture(one).config == load_architecture(other).config


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (GPTJ, "rotary_dim", 5),
        (GPTJ, "rotary_dim", 14),
        (GPTJ, "n_embd", 50),
        (GPTJ, "rotary", False),
        (GPTJ, "scale_attn_weights", False),
        (GPTJ, "new_kind_of_attention", True),
        (NEOX, "hidden_act", "swish"),
        (NEOX, "hidden_size", 50),
        (NEOX, "new_kind_of_attention", True),
        (BLOOM, "apply_residual_connection_post_layernorm", True),
        (BLOOM, "skip_bias_add_qkv", True),
        (BLOOM, "n_head", 5),
        (BLOOM, "n_embed", 64),
        (BLOOM, "new_kind_of_attention", True),
        (PHI3, "attention_bias", True),
        (PHI3, "lm_head_bias", True),
        (PHI3, "full_attn_mod", 2),
        (PHI3, "sliding_window", 0),
        (PHI3, "rope_scaling", {"type": "yarn", "factor": 4.0}),
        (PHI3, "new_kind_of_attention", True),
        (GEMMA, "hidden_act", "swish"),
        (GEMMA, "use_bidirectional_attention", True),
        (GEMMA, "new_kind_of_attention", True),
        (GEMMA2, "hidden_act", "relu"),
        (GEMMA2, "attn_logit_softcapping", -1.0),
        (GEMMA2, "layer_types", ["full_attention"]),
        (GEMMA2, "layer_types", ["chunked_attention"] * 4),
        (GEMMA2, "sliding_window_size", 7),
        (GEMMA2, "new_kind_of_attention", True),
        (GEMMA3, "attn_logit_softcapping", 50.0),
        (GEMMA3, "use_bidirectional_attention", True),
        (GEMMA3, "rope_parameters", FULL),
        (GEMMA3, "sliding_window_pattern", 0),
        (GEMMA3, "new_kind_of_attention", True),
        (GLM, "partial_rotary_factor", 0.25),
        (GLM, "hidden_act", "swish"),
        (GLM4, "new_kind_of_attention", True),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(
    config: dict[str, Any], field: str, value: object
) -> None:
    load_architecture(config)
    words = {"partial_rotary_factor": "rotary positions", "n_embed": "n_embed|hidden_size"}
    with pytest.raises(ModelFileError, match=words.get(field, re.escape(field))) as caught:
        load_architecture({**config, field: value})
    assert "\n" not in str(caught.value)


def test_a_null_soft_cap_is_none_and_a_missing_one_the_default() -> None:
    config = load_architecture(GEMMA2).config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    without = {"attn_logit_softcapping": None, "final_logit_softcapping": None}
    config = load_architecture({**GEMMA2, **without}).config
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (None, None)


def test_positions_end_where_the_model_was_trained() -> None:
    assert load_architecture({**BLOOM, "seq_length": 9}).max_positions == 9
    stretched = {**GEMMA3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert load_architecture(stretched).max_positions == 64
