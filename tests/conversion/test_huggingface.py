import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from martlet.checkpoint.store import open_store
from martlet.conversion.convert import convert
from martlet.errors import ModelFileError, ModelNotFoundError, UsageError
from martlet.models.config import load_architecture
from martlet.quantization.scheme import QuantizedTensor

GPT2_CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 48,
    "n_positions": 12,
    "n_ctx": 12,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 4,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "pad_token_id": 0,
    "n_inner": 32,
}
T5_CONFIG = {
    "model_type": "t5",
    "vocab_size": 48,
    "d_model": 8,
    "d_kv": 4,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
    "is_encoder_decoder": True,
}
LLAMA_CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 48,
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 1,
    "rope_scaling": None,
}
LAYOUTS = ["safetensors", "bin", "sharded safetensors", "sharded bin"]


def gpt2_state(weights: dict[str, Any], prefix: str = "transformer.") -> dict[str, Any]:
    """The state dict of a GPT-2 file: Conv1D keeps (in, out); buffers ride along."""
    state = {}
    for name, tensor in weights.items():
        conv1d = tensor.ndim == 2 and ".h." in name
        state[prefix + name.removeprefix("transformer.")] = (
            tensor.T.contiguous() if conv1d else tensor
        )
    for i in range(2):
        state[f"{prefix}h.{i}.attn.bias"] = torch.ones(1, 1, 12, 12, dtype=torch.uint8)
        state[f"{prefix}h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    return state


def require_same(folder: Path, weights: dict[str, Any]) -> None:
    store = open_store(folder)
    store.verify()
    seen = set()
    for block in store.manifest.blocks:
        for name, weight in store.block(block.name).items():
            seen.add(block.prefix + name)
            assert isinstance(weight, torch.Tensor)
            assert torch.equal(weight, weights[block.prefix + name]), name
            assert weight.dtype == weights[block.prefix + name].dtype
    assert seen == weights.keys()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_gpt2_is_turned_round_and_kept_bit_for_bit(
    maker: Any, tmp_path: Path, layout: str, prefix: str
) -> None:
    weights = maker.gpt2()
    source = maker.hugging_face(GPT2_CONFIG, gpt2_state(weights, prefix), layout)
    report = convert(source, tmp_path / "out")
    assert (report.format_name, report.family) == ("huggingface", "gpt2")
    require_same(tmp_path / "out", weights)
    config = open_store(tmp_path / "out").config
    assert config["eos_token_id"] == 50256
    assert "architectures" not in config


@pytest.mark.parametrize("layout", LAYOUTS)
def test_t5_is_kept_bit_for_bit(maker: Any, tmp_path: Path, layout: str) -> None:
    weights = maker.t5()
    copies = {
        "encoder.embed_tokens.weight": weights["shared.weight"].clone(),
        "decoder.embed_tokens.weight": weights["shared.weight"].clone(),
    }
    source = maker.hugging_face(T5_CONFIG, {**weights, **copies}, layout)
    assert convert(source, tmp_path / "out").family == "t5"
    require_same(tmp_path / "out", weights)


def llama_weights(config: dict[str, Any]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(5)
    return {
        block.prefix + spec.name: torch.randn(spec.shape, generator=generator).half()
        for block in load_architecture(config).block_specs()
        for spec in block.tensors
    }


@pytest.mark.parametrize("layout", LAYOUTS)
def test_llama_is_kept_bit_for_bit(maker: Any, tmp_path: Path, layout: str) -> None:
    weights = llama_weights(LLAMA_CONFIG)
    buffers = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(1) for i in (0, 1)}
    source = maker.hugging_face(LLAMA_CONFIG, {**weights, **buffers}, layout)
    (source / "tokenizer.json").write_text("{}")
    (source / "tokenizer.model").write_bytes(b"pieces")
    report = convert(source, tmp_path / "out")
    assert (report.format_name, report.family) == ("huggingface", "llama")
    require_same(tmp_path / "out", weights)
    store = open_store(tmp_path / "out")
    assert store.tokenizer is not None
    assert (store.tokenizer.kind, store.tokenizer.files) == (
        "huggingface",
        ("tokenizer.json", "tokenizer.model"),
    )
    assert "architectures" not in store.config


def test_a_tied_llama_leaves_a_head_in_the_file_alone(maker: Any, tmp_path: Path) -> None:
    config = {**LLAMA_CONFIG, "tie_word_embeddings": True}
    weights = llama_weights(config)
    head = {"lm_head.weight": weights["model.embed_tokens.weight"].clone()}
    convert(maker.hugging_face(config, {**weights, **head}), tmp_path / "out")
    require_same(tmp_path / "out", weights)
    assert open_store(tmp_path / "out").tokenizer is None


def test_a_llama_that_cannot_be_computed_is_not_converted(maker: Any, tmp_path: Path) -> None:
    scaled = {**LLAMA_CONFIG, "rope_scaling": {"rope_type": "spiral", "factor": 8.0}}
    source = maker.hugging_face(scaled, llama_weights(LLAMA_CONFIG))
    with pytest.raises(ModelFileError, match="spiral"):
        convert(source, tmp_path / "out")


def test_a_vocabulary_of_another_kind_is_refused(maker: Any, tmp_path: Path) -> None:
    source = maker.hugging_face(LLAMA_CONFIG, llama_weights(LLAMA_CONFIG))
    (source / "vocab.txt").write_text("words")
    with pytest.raises(
        UsageError, match=r"no vocabulary for llama there; expected tokenizer\.json"
    ):
        convert(source, tmp_path / "out", tokenizer=source / "vocab.txt")


def test_embeddings_may_stand_under_the_names_of_the_stacks_only(
    maker: Any, tmp_path: Path
) -> None:
    weights = maker.t5()
    renamed = dict(weights)
    renamed["encoder.embed_tokens.weight"] = renamed.pop("shared.weight")
    convert(maker.hugging_face(T5_CONFIG, renamed), tmp_path / "out")
    require_same(tmp_path / "out", weights)


def test_cpm_generate_gets_its_real_end_token_and_its_own_tokenizer(
    maker: Any, tmp_path: Path
) -> None:
    source = maker.hugging_face(GPT2_CONFIG, gpt2_state(maker.gpt2()), "bin")
    (source / "tokenizer_config.json").write_text('{"tokenizer_class": "CpmTokenizer"}')
    (source / "spiece.model").write_bytes(b"pieces")
    (source / "tokenizer.json").write_text("{}")
    assert convert(source, tmp_path / "out").family == "cpm1"
    store = open_store(tmp_path / "out")
    assert (store.config["eos_token_id"], store.config["bos_token_id"]) == (7, None)
    assert store.tokenizer is not None
    assert (store.tokenizer.kind, store.tokenizer.files) == ("cpm1", ("chinese_vocab.model",))
    assert (store.folder / "chinese_vocab.model").read_bytes() == b"pieces"


@pytest.mark.parametrize("attn_scale", [True, False, None])
def test_eva_becomes_t5_with_its_attention_scale(
    maker: Any, tmp_path: Path, attn_scale: bool | None
) -> None:
    weights = maker.t5()
    config = {**T5_CONFIG, "model_type": "eva", "feed_forward_proj": "relu", "eos_token_id": 4}
    if attn_scale is not None:
        config["attn_scale"] = attn_scale
    source = maker.hugging_face(config, weights, "bin")
    # Line 9 of the real file is empty and counts.
    (source / "vocab.txt").write_text("a\n" * 8 + "\n" + "b\n" * 39)
    assert convert(source, tmp_path / "out").family == "eva"
    store = open_store(tmp_path / "out")
    assert store.config["model_type"] == "t5"
    assert store.config["attn_scale"] is bool(attn_scale)
    assert store.tokenizer is not None
    assert (store.tokenizer.kind, store.tokenizer.files) == ("eva", ("vocab.txt",))
    require_same(tmp_path / "out", weights)


def test_mt5_is_gated_and_untied_unless_its_config_says_otherwise(
    maker: Any, tmp_path: Path
) -> None:
    config = {**T5_CONFIG, "model_type": "mt5"}
    del config["feed_forward_proj"], config["tie_word_embeddings"]
    weights = maker.t5()
    convert(maker.hugging_face(config, weights), tmp_path / "out")
    require_same(tmp_path / "out", weights)


def test_tokenizer_and_sampling_defaults_come_along(maker: Any, tmp_path: Path) -> None:
    source = maker.hugging_face(T5_CONFIG, maker.t5())
    (source / "tokenizer.json").write_text("{}")
    (source / "spiece.model").write_bytes(b"p")
    generation = {"top_k": 40, "temperature": 0.7, "transformers_version": "4.1", "top_p": None}
    (source / "generation_config.json").write_text(json.dumps(generation))
    convert(source, tmp_path / "out")
    store = open_store(tmp_path / "out")
    assert store.tokenizer is not None
    assert store.tokenizer.kind == "huggingface"
    assert store.tokenizer.files == ("tokenizer.json", "spiece.model")
    assert store.generation == {"top_k": 40, "temperature": 0.7}


def test_the_float_type_can_be_changed_if_all_values_fit(maker: Any, tmp_path: Path) -> None:
    weights = {name: t.float() for name, t in maker.t5().items()}
    source = maker.hugging_face(T5_CONFIG, weights)
    convert(source, tmp_path / "half", dtype="float16")
    require_same(tmp_path / "half", {name: t.half() for name, t in weights.items()})
    weights["lm_head.weight"][1, 2] = 1e6
    source = maker.hugging_face(T5_CONFIG, weights)
    with pytest.raises(ModelFileError, match=r"lm_head\.weight: a weight does not fit"):
        convert(source, tmp_path / "overflow", dtype="float16")
    convert(source, tmp_path / "brain", dtype="bfloat16")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(maker: Any, tmp_path: Path, bad: float) -> None:
    weights = maker.t5()
    weights["decoder.block.1.layer.2.DenseReluDense.wo.weight"][3, 5] = bad
    source = maker.hugging_face(T5_CONFIG, weights)
    with pytest.raises(ModelFileError, match=r"decoder\.block\.1.*wo\.weight: row 3"):
        convert(source, tmp_path / "out", quantize="int8")
    assert not (tmp_path / "out").exists()


def test_our_own_folder_can_be_quantised_afterwards(maker: Any, tmp_path: Path) -> None:
    source = maker.hugging_face(T5_CONFIG, maker.t5())
    (source / "tokenizer.json").write_text("{}")
    convert(source, tmp_path / "float")
    report = convert(tmp_path / "float", tmp_path / "later", quantize="int8")
    assert (report.format_name, report.quantize) == ("martlet", "int8")
    convert(source, tmp_path / "once", quantize="int8")
    later, once = open_store(tmp_path / "later"), open_store(tmp_path / "once")
    assert later.manifest == once.manifest
    # Converting what is int8 already changes nothing, and a folder may replace itself.
    convert(tmp_path / "later", tmp_path / "later", overwrite=True)
    assert open_store(tmp_path / "later").manifest == once.manifest


def test_tensors_of_the_wrong_shape_are_refused(maker: Any, tmp_path: Path) -> None:
    source = maker.hugging_face({**T5_CONFIG, "d_ff": 20}, maker.t5())
    with pytest.raises(ModelFileError, match=r"\[24, 8\], the configuration asks for \[20, 8\]"):
        convert(source, tmp_path / "out")


def test_a_missing_tensor_is_named(maker: Any, tmp_path: Path) -> None:
    weights = maker.t5()
    del weights["decoder.final_layer_norm.weight"]
    with pytest.raises(ModelFileError, match=r"has no tensor decoder\.final_layer_norm\.weight"):
        convert(maker.hugging_face(T5_CONFIG, weights), tmp_path / "out")


@pytest.mark.parametrize("model_type", ["umt5", "bert", None, 7])
def test_other_architectures_are_refused_by_name(
    maker: Any, tmp_path: Path, model_type: object
) -> None:
    source = maker.hugging_face({**T5_CONFIG, "model_type": model_type}, maker.t5())
    with pytest.raises(ModelFileError, match=r"model_type .*supported are .*llama"):
        convert(source, tmp_path / "out")


def test_what_is_no_checkpoint_is_told_with_all_that_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelFileError, match=r"config\.json.*mp_rank_00.*checkpoint\.pt"):
        convert(tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ModelNotFoundError):
        convert(tmp_path / "absent", tmp_path / "out")
    (tmp_path / "text.txt").write_text("no weights here")
    with pytest.raises(ModelFileError, match="not a BMInf checkpoint"):
        convert(tmp_path / "text.txt", tmp_path / "out")


def test_options_that_make_no_sense_are_usage_errors(maker: Any, tmp_path: Path) -> None:
    source = maker.hugging_face(T5_CONFIG, maker.t5())
    with pytest.raises(UsageError, match="quantize"):
        convert(source, tmp_path / "out", quantize="int3")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="dtype"):
        convert(source, tmp_path / "out", dtype="int8")  # type: ignore[arg-type]
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UsageError, match="not a folder"):
        convert(source, tmp_path / "out")


def test_progress_counts_up_to_the_total_and_paths_may_be_odd(maker: Any, tmp_path: Path) -> None:
    source = maker.hugging_face(T5_CONFIG, maker.t5())
    odd = tmp_path / "ein Ordner 燕子 [x]*"
    shutil.copytree(source, odd)
    seen: list[tuple[int, int, str]] = []
    report = convert(
        odd,
        tmp_path / "新 模型 [y]",
        quantize="int8",
        progress=lambda done, total, name: seen.append((done, total, name)),
    )
    assert len(seen) == report.num_tensors
    assert [done for done, _, _ in seen] == sorted(done for done, _, _ in seen)
    assert seen[-1][0] == seen[-1][1] <= report.nbytes
    assert report.nbytes == sum(
        entry.size_bytes
        for name, entry in open_store(report.path).manifest.files.items()
        if name.endswith(".safetensors")
    )
    weight = open_store(report.path).block("encoder.0")["layer.0.SelfAttention.q.weight"]
    assert isinstance(weight, QuantizedTensor)
