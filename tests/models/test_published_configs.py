"""The config.json files of published models are read, and give the published number of parameters.

Fields that say nothing about what is computed stay in, since they must not be refused.
"""

import math
from collections.abc import Mapping
from typing import Any

import pytest

from martlet.models.config import load_architecture

COMMON = {
    "architectures": ["ForCausalLM"],
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "use_cache": True,
}
GPTJ_6B = {
    **COMMON,
    "model_type": "gptj",
    "activation_function": "gelu_new",
    "attn_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "gradient_checkpointing": False,
    "layer_norm_epsilon": 1e-05,
    "n_embd": 4096,
    "n_head": 16,
    "n_inner": None,
    "n_layer": 28,
    "n_positions": 2048,
    "resid_pdrop": 0.0,
    "rotary": True,
    "rotary_dim": 64,
    "scale_attn_weights": True,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
    "tie_word_embeddings": False,
    "tokenizer_class": "GPT2Tokenizer",
    "vocab_size": 50400,
}
NEOX_20B = {
    **COMMON,
    "model_type": "gpt_neox",
    "attention_probs_dropout_prob": 0,
    "hidden_act": "gelu_fast",
    "hidden_dropout_prob": 0,
    "hidden_size": 6144,
    "intermediate_size": 24576,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 64,
    "num_hidden_layers": 44,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "vocab_size": 50432,
}
PYTHIA_1B4 = {
    **COMMON,
    "model_type": "gpt_neox",
    "hidden_act": "gelu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
BLOOM_7B1 = {
    **COMMON,
    "model_type": "bloom",
    "apply_residual_connection_post_layernorm": False,
    "attention_softmax_in_fp32": True,
    "bias_dropout_fusion": True,
    "hidden_dropout": 0.0,
    "layer_norm_epsilon": 1e-05,
    "masked_softmax_fusion": True,
    "n_embed": 4096,
    "n_inner": None,
    "n_layer": 30,
    "num_attention_heads": 32,
    "offset_alibi": 100,
    "pad_token_id": 3,
    "pretraining_tp": 4,
    "skip_bias_add": True,
    "skip_bias_add_qkv": False,
    "slow_but_exact": False,
    "unk_token_id": 0,
    "vocab_size": 250880,
}
PHI3_MINI_4K = {
    **COMMON,
    "model_type": "phi3",
    "attention_bias": False,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"},
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "pad_token_id": 32000,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
FACTORS = {"long_factor": [4.0] * 48, "short_factor": [1.0] * 48}
PHI3_MINI_128K = {
    **PHI3_MINI_4K,
    "max_position_embeddings": 131072,
    "rope_scaling": {**FACTORS, "type": "longrope"},
    "sliding_window": 262144,
}
PHI4 = {
    **PHI3_MINI_4K,
    "hidden_size": 5120,
    "intermediate_size": 17920,
    "max_position_embeddings": 16384,
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "num_key_value_heads": 10,
    "original_max_position_embeddings": 16384,
    "rope_theta": 250000,
    "sliding_window": None,
    "vocab_size": 100352,
}
PHI4_MINI = {
    **PHI3_MINI_128K,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.75,
    "tie_word_embeddings": True,
    "vocab_size": 200064,
}
GEMMA_2B = {
    **COMMON,
    "model_type": "gemma",
    "attention_bias": False,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA2_9B = {
    **GEMMA_2B,
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3584,
    "intermediate_size": 14336,
    "num_attention_heads": 16,
    "num_hidden_layers": 42,
    "num_key_value_heads": 8,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "sliding_window_size": 4096,
}
GEMMA3_1B = {
    **COMMON,
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "eos_token_id": [1, 106],
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
# What its config.json says of the text; the rest are the defaults of the format.
GEMMA3_4B_TEXT = {
    "model_type": "gemma3_text",
    "hidden_size": 2560,
    "intermediate_size": 10240,
    "num_hidden_layers": 34,
    "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    "sliding_window": 1024,
}
GLM4_9B_CHAT = {
    **COMMON,
    "model_type": "glm",
    "attention_bias": True,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 13696,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "pad_token_id": 151329,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1.5625e-07,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "vocab_size": 151552,
}
GLM4_9B_0414 = {
    **GLM4_9B_CHAT,
    "model_type": "glm4",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
}

PUBLISHED = {
    "gpt-j-6b": (GPTJ_6B, 6_050_882_784),
    "gpt-neox-20b": (NEOX_20B, 20_554_567_680),
    "pythia-1.4b": (PYTHIA_1B4, 1_414_647_808),
    "bloom-7b1": (BLOOM_7B1, 7_069_016_064),
    "phi-3-mini-4k": (PHI3_MINI_4K, 3_821_079_552),
    "phi-3-mini-128k": (PHI3_MINI_128K, 3_821_079_552),
    "phi-4": (PHI4, 14_659_507_200),
    "phi-4-mini": (PHI4_MINI, 3_836_021_760),
    "gemma-2b": (GEMMA_2B, 2_506_172_416),
    "gemma-2-9b": (GEMMA2_9B, 9_241_705_984),
    "gemma-3-1b": (GEMMA3_1B, 999_885_952),
    # 4,300,079,472 with the vision tower and what joins it to the text.
    "gemma-3-4b": (GEMMA3_4B_TEXT, 3_880_263_168),
    "glm-4-9b-chat": (GLM4_9B_CHAT, 9_399_951_360),
    "glm-4-9b-0414": (GLM4_9B_0414, 9_400_279_040),
}


@pytest.mark.parametrize(("config", "num_parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_a_published_model_has_the_published_number_of_parameters(
    config: Mapping[str, Any], num_parameters: int
) -> None:
    blocks = load_architecture(config).block_specs()
    shapes = [tensor.shape for block in blocks for tensor in block.tensors]
    assert sum(map(math.prod, shapes)) == num_parameters


@pytest.mark.parametrize(("config", "num_parameters"), PUBLISHED.values(), ids=PUBLISHED)
def test_no_matrix_of_a_checkpoint_is_used_twice_or_left_out(
    config: Mapping[str, Any], num_parameters: int
) -> None:
    """Parts of a fused matrix lie side by side and fill it."""
    architecture = load_architecture(config)
    places: dict[str, list[Any]] = {}
    for block in architecture.block_specs():
        for tensor in block.tensors:
            place = architecture.checkpoint_tensor(block.prefix + tensor.name)
            places.setdefault(place.names[0], []).append((place, tensor.shape[0]))
    for name, parts in places.items():
        if len(parts) == 1:
            assert parts[0][0].is_whole, name
            continue
        rows = sum(rows for _, rows in parts)
        taken = []
        for place, own_rows in parts:
            period = place.period or rows
            taken += [row for row in range(rows) if 0 <= row % period - place.first < place.count]
            assert own_rows == rows // period * place.count, name
        assert sorted(taken) == list(range(rows)), name
