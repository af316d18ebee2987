"""Fields of Mistral, Qwen and MiniCPM: what they mean, what may stay, what is refused by name."""

import math
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
    "max_position_embeddings": 64,
}
LLAMA = {**SIZES, "model_type": "llama"}
MISTRAL = {**SIZES, "model_type": "mistral"}
QWEN2 = {**SIZES, "model_type": "qwen2"}
QWEN3 = {**SIZES, "model_type": "qwen3"}
MINICPM = {**SIZES, "model_type": "minicpm"}
MINICPM3 = {**SIZES, "model_type": "minicpm3", "num_key_value_heads": 4}
SPARSE = {
    "kernel_size": 32,
    "kernel_stride": 16,
    "init_blocks": 1,
    "block_size": 64,
    "window_size": 2048,
    "topk": 64,
    "use_nope": False,
    "dense_len": 40,
}
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}


def _config(config: dict[str, Any], **fields: Any) -> Any:
    return load_architecture({**config, **fields}).config


def test_a_window_that_is_not_named_is_that_of_the_first_mistral_and_null_is_none() -> None:
    assert _config(MISTRAL).sliding_window == 4096
    assert _config(MISTRAL, sliding_window=7).sliding_window == 7
    assert _config(MISTRAL, sliding_window=None).sliding_window is None


@pytest.mark.parametrize("qwen", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_windows_of_qwen_are_off_unless_asked_for(qwen: dict[str, Any]) -> None:
    named = {"sliding_window": 9, "max_window_layers": 3}
    config = _config(qwen, **named)
    assert config.sliding_window is None
    assert set(config.kinds) == {"full"}
    config = _config(qwen, **named, use_sliding_window=True)
    assert config.kinds == ("full", "full", "full", "sliding")
    assert {kind: sight.window for kind, sight in config.sights.items()} == {
        "full": None,
        "sliding": 9,
    }
    types = ["sliding_attention", "full_attention"] * 2
    config = _config(qwen, **named, use_sliding_window=True, layer_types=types)
    assert config.kinds == ("sliding", "full") * 2


def test_minicpm_reads_as_far_as_its_attention_is_dense() -> None:
    assert load_architecture(MINICPM).max_positions == 64
    assert load_architecture({**MINICPM, "sparse_config": None}).max_positions == 64
    # From 40 tokens on it would be sparse.
    assert load_architecture({**MINICPM, "sparse_config": SPARSE}).max_positions == 39
    late = {**SPARSE, "dense_len": 8192}
    assert load_architecture({**MINICPM, "sparse_config": late}).max_positions == 64


def test_a_null_multiplier_of_minicpm3_changes_nothing() -> None:
    null = dict.fromkeys(("scale_emb", "scale_depth", "dim_model_base"))
    config = _config(MINICPM3, **null)
    assert (config.scale_emb, config.residual_scale, config.dim_model_base) == (1.0, 1.0, 48.0)
    config = _config(MINICPM3)
    assert (config.scale_emb, config.scale_depth, config.dim_model_base) == (12.0, 1.4, 256.0)


def test_yarn_reaches_beyond_the_positions_that_qwen_names() -> None:
    assert load_architecture({**QWEN2, "rope_scaling": YARN}).max_positions == 256


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (MISTRAL, "sliding_window", 0),
        (MISTRAL, "sliding_window", "4096"),
        (MISTRAL, "layer_types", ["sliding_attention"] * 4),
        (MISTRAL, "attention_bias", True),
        (QWEN2, "layer_types", ["chunked_attention"] * 4),
        (QWEN2, "layer_types", ["full_attention"] * 3),
        (QWEN2, "layer_types", "full_attention"),
        (QWEN2, "layer_types", [["full_attention"]] * 4),
        (QWEN2, "max_window_layers", -1),
        (QWEN2, "max_window_layers", "3"),
        (QWEN2, "use_sliding_window", "yes"),
        (QWEN2, "use_mrope", True),
        (QWEN2, "dual_chunk_attention_config", {"chunk_size": 8}),
        (QWEN2, "rope_scaling", {"type": "mrope", "mrope_section": [1, 2, 3]}),
        (QWEN3, "num_experts", 128),
        (QWEN3, "head_dim", 15),
        (MINICPM, "num_experts", 8),
        (MINICPM, "scale_depth", 0),
        (MINICPM, "scale_emb", "12"),
        (MINICPM, "sparse_config", "yes"),
        (MINICPM, "dense_len", 5),
        (MINICPM3, "num_key_value_heads", 2),
        (MINICPM3, "v_head_dim", 97),
        (MINICPM3, "qk_head_dim", 33),
        (MINICPM3, "rope_scaling", {**YARN, "mscale_all_dim": 1.0}),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    config: dict[str, Any], field: str, value: object
) -> None:
    with pytest.raises(ModelFileError, match=re.escape(field)) as caught:
        load_architecture({**config, field: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


def test_attention_that_is_always_sparse_is_refused() -> None:
    with pytest.raises(ModelFileError, match="dense_len"):
        load_architecture({**MINICPM, "sparse_config": {**SPARSE, "dense_len": -1}})


COMMON = {
    "architectures": ["ForCausalLM"],
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration.Config"},
    "bos_token_id": 1,
    "eos_token_id": [2, 73440],
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.1",
    "use_cache": True,
    "rope_scaling": None,
}
LLAMA31_8B = {
    **COMMON,
    "model_type": "llama",
    "attention_bias": False,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
MISTRAL_7B = {
    **COMMON,
    "model_type": "mistral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}
QWEN25_7B = {
    **COMMON,
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
QWEN3_06B = {
    **COMMON,
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
MINICPM_2B = {
    **COMMON,
    "model_type": "minicpm",
    "dim_model_base": 256,
    "hidden_size": 2304,
    "intermediate_size": 5760,
    "max_position_embeddings": 2048,
    "num_attention_heads": 36,
    "num_hidden_layers": 40,
    "num_key_value_heads": 36,
    "rms_norm_eps": 1e-05,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "vocab_size": 122753,
}
FACTORS = {"short_factor": [1.0] * 64, "long_factor": [1.5] * 64}
MINICPM4_8B = {
    **COMMON,
    "model_type": "minicpm",
    "attention_bias": False,
    "dim_model_base": 256,
    "hidden_size": 4096,
    "intermediate_size": 16384,
    "max_position_embeddings": 32768,
    "mup_denominator": 32,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        **FACTORS,
        "rope_type": "longrope",
        "original_max_position_embeddings": 32768,
    },
    "scale_depth": 1.4,
    "scale_emb": 12,
    "tie_word_embeddings": False,
    "vocab_size": 73448,
}
MINICPM3_4B = {
    **COMMON,
    "model_type": "minicpm3",
    "dim_model_base": 256,
    "hidden_size": 2560,
    "intermediate_size": 6400,
    "kv_lora_rank": 256,
    "max_position_embeddings": 32768,
    "num_attention_heads": 40,
    "num_hidden_layers": 62,
    "num_key_value_heads": 40,
    "q_lora_rank": 768,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "short_factor": [1.0] * 16,
        "long_factor": [1.5] * 16,
        "original_max_position_embeddings": 32768,
        "type": "longrope",
    },
    "scale_depth": 1.4,
    "scale_emb": 12,
    "vocab_size": 73448,
}
# As the released checkpoints say; MiniCPM3 and MiniCPM4 counted from their configurations.
PUBLISHED = {
    "llama-3.1-8b": (LLAMA31_8B, 8_030_261_248),
    "mistral-7b": (MISTRAL_7B, 7_241_732_096),
    "qwen2.5-7b": (QWEN25_7B, 7_615_616_512),
    "qwen3-0.6b": (QWEN3_06B, 596_049_920),
    "minicpm-2b": (MINICPM_2B, 2_724_880_896),
    "minicpm4-8b": (MINICPM4_8B, 8_185_253_888),
    "minicpm3-4b": (MINICPM3_4B, 4_073_875_968),
}


@pytest.mark.parametrize(("config", "num_parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_model_has_the_published_number_of_parameters(
    config: dict[str, Any], num_parameters: int
) -> None:
    blocks = load_architecture(config).block_specs()
    shapes = [tensor.shape for block in blocks for tensor in block.tensors]
    assert sum(map(math.prod, shapes)) == num_parameters
