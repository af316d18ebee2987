"""What of a config.json is honoured, and what is refused by name."""

from collections.abc import Mapping
from typing import Any

import pytest

from martlet.errors import ModelFileError
from martlet.models.config import load_architecture

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 50,
    "n_positions": 32,
    "n_embd": 12,
    "n_layer": 2,
    "n_head": 3,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 50,
    "hidden_size": 12,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 50,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 20,
    "num_layers": 2,
    "num_heads": 3,
}


def _num_parameters(config: Mapping[str, Any]) -> int:
    total = 0
    for block in load_architecture(config).block_specs():
        for tensor in block.tensors:
            size = 1
            for axis in tensor.shape:
                size *= axis
            total += size
    return total


def test_the_published_models_have_the_published_number_of_parameters() -> None:
    cpm1 = {"n_positions": 1024, "n_embd": 2560, "n_layer": 32, "n_head": 32, "vocab_size": 30000}
    assert _num_parameters({"model_type": "gpt2", **cpm1}) == 2_597_073_920
    common = {
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "num_layers": 24,
        "d_kv": 64,
    }
    llama = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    llama |= {"num_attention_heads": 32, "vocab_size": 32000}
    assert _num_parameters({"model_type": "llama", **llama}) == 6_738_415_616
    cpm2 = {"vocab_size": 26240, "d_model": 4096, "d_ff": 10240, "num_heads": 64}
    assert _num_parameters({**common, **cpm2}) == 11_087_097_856
    eva = {"vocab_size": 30000, "d_model": 2048, "d_ff": 5120, "num_heads": 32}
    # The published 2,841,044,992 count a table of two roles that generation never uses.
    assert _num_parameters({**common, **eva}) == 2_841_044_992 - 2 * 2048


def test_missing_fields_take_the_defaults_of_the_format() -> None:
    t5 = load_architecture(T5)
    assert t5.num_blocks("decoder") == 2
    assert t5.config.relative_attention_max_distance == 128
    assert (t5.config.dense_act_fn, t5.config.is_gated_act) == ("relu", False)
    assert t5.config.tie_word_embeddings
    assert t5.config.scale_decoder_outputs
    mt5 = load_architecture({**T5, "model_type": "mt5"})
    assert (mt5.config.dense_act_fn, mt5.config.is_gated_act) == ("gelu_new", True)
    assert not mt5.config.tie_word_embeddings
    assert load_architecture(GPT2).config.n_inner == 48
    old_llama = {name: LLAMA[name] for name in LLAMA if name != "num_key_value_heads"}
    llama = load_architecture(old_llama)
    assert (llama.config.num_key_value_heads, llama.config.head_dim) == (6, 2)
    assert (llama.max_positions, llama.config.tie_word_embeddings) == (2048, False)
    old = {name: value for name, value in GPT2.items() if name != "n_positions"}
    assert load_architecture({**old, "n_ctx": 9}).max_positions == 9


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (GPT2, "model_type", "gpt_noex"),
        (GPT2, "model_type", None),
        (GPT2, "model_type", ["gpt2"]),
        (GPT2, "n_embd", 13),
        (GPT2, "n_embd", 0),
        (GPT2, "n_embd", -12),
        (GPT2, "n_embd", 12.0),
        (GPT2, "n_embd", "12"),
        (GPT2, "n_embd", None),
        (GPT2, "n_layer", True),
        (GPT2, "n_layer", 10**9),
        (GPT2, "vocab_size", 10**30),
        (GPT2, "activation_function", "swish"),
        (GPT2, "activation_function", 3),
        (GPT2, "layer_norm_epsilon", 0),
        (GPT2, "layer_norm_epsilon", float("nan")),
        (GPT2, "layer_norm_epsilon", "1e-5"),
        (GPT2, "add_cross_attention", True),
        (GPT2, "scale_attn_weights", "yes"),
        (GPT2, "hidden_size", 12),
        (GPT2, "pruned_heads", {"0": [1]}),
        (GPT2, "quantization_config", {"bits": 4}),
        (LLAMA, "num_hidden_layers", 0),
        (LLAMA, "intermediate_size", None),
        (LLAMA, "hidden_size", 13),
        (LLAMA, "num_key_value_heads", 4),
        (LLAMA, "head_dim", 5),
        (LLAMA, "hidden_act", "mish"),
        (LLAMA, "attention_bias", 1),
        (LLAMA, "mlp_bias", "no"),
        (LLAMA, "sliding_window", 4096),
        (LLAMA, "partial_rotary_factor", 0.5),
        (LLAMA, "attn_temperature_tuning", 4),
        (LLAMA, "rope_theta", 0),
        (LLAMA, "rope_theta", "10000"),
        (LLAMA, "rope_scaling", {"type": "linear"}),
        (LLAMA, "rope_scaling", {"type": "linear", "factor": 0.5}),
        (LLAMA, "rope_scaling", {"type": "linear", "rope_type": "yarn", "factor": 2.0}),
        (LLAMA, "rope_scaling", {"type": "linear", "factor": 2.0, "beta_fast": 3}),
        (LLAMA, "rope_scaling", {"type": "mrope", "mrope_section": [1, 1, 1]}),
        (LLAMA, "rope_scaling", {"type": "longrope", "short_factor": [1, 1], "long_factor": [1]}),
        (LLAMA, "rope_scaling", {"type": "dynamic", "factor": 2.0}),
        (LLAMA, "rope_scaling", {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}),
        (LLAMA, "rope_scaling", {"rope_type": ["default"]}),
        (LLAMA, "rope_scaling", "linear"),
        (LLAMA, "rope_parameters", {"rope_type": "dynamic", "rope_theta": 1e4}),
        (LLAMA, "rope_parameters", {"rope_type": "default", "partial_rotary_factor": 0.5}),
        (LLAMA, "rms_norm_eps", float("inf")),
        (LLAMA, "quantization_config", {"bits": 4}),
        (T5, "d_kv", None),
        (T5, "num_decoder_layers", 0),
        (T5, "feed_forward_proj", "gated-mish"),
        (T5, "feed_forward_proj", "gated-gated-gelu"),
        (T5, "dense_act_fn", "gelu_new"),
        (T5, "is_gated_act", True),
        (T5, "relative_attention_num_buckets", 2),
        (T5, "relative_attention_max_distance", 16),
        (T5, "is_decoder", True),
        (T5, "is_encoder_decoder", False),
        (T5, "attn_scale", 1),
        (T5, "n_layer", 2),
        (T5, "tie_word_embeddings", "false"),
    ],
)
def test_a_field_that_is_not_supported_is_refused_by_name(
    config: Mapping[str, Any], field: str, value: object
) -> None:
    with pytest.raises(ModelFileError, match=field) as caught:
        load_architecture({**config, field: value})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 350


def test_rope_settings_are_read_in_both_forms() -> None:
    def theta(**fields: object) -> float:
        return load_architecture({**LLAMA, **fields}).config.rotary.theta

    assert theta() == theta(rope_parameters=None, rope_scaling=None) == 10000.0
    assert theta(rope_theta=5e5, rope_scaling={"type": "default"}) == 5e5
    assert theta(rope_parameters={"rope_theta": 7e5, "rope_type": "default"}) == 7e5
    with pytest.raises(ModelFileError, match="rope_theta"):
        theta(rope_parameters={"rope_theta": -1, "rope_type": "default"})


def test_a_config_that_repeats_itself_consistently_is_read() -> None:
    repeated = {"feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new", "is_gated_act": True}
    config = load_architecture({**T5, **repeated, "pruned_heads": {}}).config
    assert config.is_gated_act


def test_blocks_of_a_stack_that_move_together_have_one_shape() -> None:
    for config in (GPT2, LLAMA, T5):
        specs = load_architecture(config).block_specs()
        for stack in ("encoder", "decoder"):
            blocks = {spec.tensors for spec in specs if spec.name.startswith(f"{stack}.")}
            assert len(blocks) <= 1


def test_query_key_value_and_both_halves_of_a_gate_stand_together() -> None:
    specs = load_architecture({**T5, "feed_forward_proj": "gated-gelu"}).block_specs()
    names = [tensor.name for tensor in specs[-1].tensors]
    for parts in (("SelfAttention.q", "k", "v"), ("EncDecAttention.k", "v"), ("wi_0", "wi_1")):
        first = next(i for i, name in enumerate(names) if parts[0] in name)
        endings = [name.split(".")[-2] for name in names[first : first + len(parts)]]
        assert endings == [part.split(".")[-1] for part in parts]
    names = [
        tensor.name.split(".")[-2] for tensor in load_architecture(LLAMA).block_specs()[-1].tensors
    ]
    for parts in (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj")):
        first = names.index(parts[0])
        assert tuple(names[first : first + len(parts)]) == parts


def test_what_is_read_once_a_text_stands_behind_all_that_every_step_reads() -> None:
    for config in (GPT2, LLAMA, T5):
        for block in load_architecture(config).block_specs():
            marks = [tensor.once for tensor in block.tensors]
            assert marks == sorted(marks)
            once = [tensor.name for tensor in block.tensors if tensor.once]
            is_cross = config is T5 and block.name.startswith("decoder.")
            names = [f"layer.1.EncDecAttention.{part}.weight" for part in "kv"]
            assert once == (names if is_cross else [])
