"""Whole checkpoints in the layouts of GPTQ and AWQ become model folders that compute the same."""

import json

import pytest
import torch

import martlet
from martlet.api.opening import open_model
from martlet.checkpoint.store import open_store
from martlet.conversion.convert import convert
from martlet.errors import ModelFileError
from martlet.models.config import load_architecture
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

LLAMA = {
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 48,
    "n_positions": 16,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 2,
    "eos_token_id": 7,
}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
_AWQ_PLACES = torch.tensor([0, 4, 1, 5, 2, 6, 3, 7])


def pack(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Neighbours of the last axis in words of 32 bits, the first lowest."""
    in_word = 32 // bits
    parts = values.long().unflatten(-1, (-1, in_word)) << bits * torch.arange(in_word)
    words = parts.sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).int()


def packed(weights, settings):
    """The checkpoint's tensors for float weights, and the weights that it then stands for."""
    random = torch.Generator().manual_seed(3)
    bits, state, exact = settings["bits"], {}, {}
    middle = 1 << bits - 1
    for name, weight in weights.items():
        if weight.ndim != 2 or ("layers" not in name and ".h." not in name):
            state[name] = exact[name] = weight
            continue
        rows, columns = weight.shape
        q = torch.randint(0, 1 << bits, (rows, columns), generator=random)
        zero = torch.randint(0, 16, (rows, columns // 32), generator=random)
        if settings.get("sym"):
            zero[:] = middle
        scale = (torch.randn(rows, columns // 32, generator=random) * 0.1 / middle).half()
        wide = zero.repeat_interleave(32, 1), scale.float().repeat_interleave(32, 1)
        exact[name] = (q - wide[0]) * wide[1]
        stem = name.removesuffix("weight")
        state[stem + "scales"] = scale.T.contiguous()
        if settings["quant_method"] == "awq":
            order = torch.argsort(_AWQ_PLACES)
            turned = [m.T.unflatten(1, (-1, 8))[:, :, order].flatten(1) for m in (q, zero)]
            state[stem + "qweight"], state[stem + "qzeros"] = (pack(m, 4) for m in turned)
            continue
        state[stem + "qweight"] = pack(q, bits).T.contiguous()
        state[stem + "qzeros"] = pack((zero - 1).T & (1 << bits) - 1, bits)
        state[stem + "g_idx"] = torch.arange(columns, dtype=torch.int32) // 32
        state[stem + "bias"] = torch.zeros(rows).half()
    return state, exact


def random_weights(config):
    random = torch.Generator().manual_seed(5)
    return {
        block.prefix + spec.name: (torch.randn(spec.shape, generator=random) * 0.2).half()
        for block in load_architecture(config).block_specs()
        for spec in block.tensors
    }


def llama_folder(maker, state, settings, layout="safetensors"):
    source = maker.hugging_face({**LLAMA, "quantization_config": settings}, state, layout)
    tokenizer = {
        "version": "1.0",
        "model": {
            "type": "WordLevel",
            "vocab": {f"a{i}": i for i in range(48)},
            "unk_token": "a0",
        },
        "added_tokens": [],
    }
    (source / "tokenizer.json").write_text(json.dumps(tokenizer))
    return source


@pytest.mark.parametrize(
    ("settings", "quantize", "layout"),
    [
        (GPTQ, "int4-g32-asym", "safetensors"),
        ({**GPTQ, "sym": True}, "int4-g32", "sharded safetensors"),
        ({**GPTQ, "sym": True, "bits": 8}, "int8-g32", "safetensors"),
        (AWQ, "int4-g32-asym", "bin"),
    ],
)
def test_a_llama_computes_what_its_dequantised_twin_computes(
    maker, tmp_path, settings, quantize, layout
):
    state, exact = packed(random_weights(LLAMA), settings)
    source = llama_folder(maker, state, settings, layout)
    report = convert(source, tmp_path / "packed")
    assert report.format_name == f"huggingface-{settings['quant_method']}"
    assert report.quantize == quantize[:4]
    store = open_store(tmp_path / "packed")
    assert "quantization_config" not in store.config
    assert store.manifest.compression["method"] == settings["quant_method"]
    weight = store.block("decoder.0")["self_attn.q_proj.weight"]
    assert isinstance(weight, GroupedTensor)
    assert weight.format.name == quantize
    assert torch.equal(weight.dequantize(), exact["model.layers.0.self_attn.q_proj.weight"])

    ids = [1, 5, 9, 13, 2, 40, 41]
    # Without being converted; nothing that is packed is rounded again.
    direct = None if layout == "bin" else martlet.load(source, device="cpu").logits(ids)

    floats = {name: weight.float() for name, weight in exact.items()}
    twin = maker.hugging_face(LLAMA, floats)
    convert(twin, tmp_path / "float")
    ours, plain = (
        martlet.load(tmp_path / name, device="cpu").logits(ids) for name in ("packed", "float")
    )
    assert plain.std() > 0.1
    # Native products of integers round activations to 16 bits, plain ones are float32 sums.
    assert (ours - plain).abs().max() < 1e-3 * plain.std()
    if direct is not None:
        assert torch.equal(direct, ours)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", [GPTQ, {**GPTQ, "sym": True, "bits": 8}, AWQ])
def test_a_gpu_computes_with_them_what_a_processor_computes(maker, tmp_path, settings):
    state, _ = packed(random_weights(LLAMA), settings)
    convert(llama_folder(maker, state, settings), tmp_path / "packed")
    ids = [1, 5, 9, 13, 2, 40, 41]
    here, there = (
        martlet.load(tmp_path / "packed", device=device).logits(ids) for device in ("cpu", "cuda")
    )
    assert (here - there).abs().max() < 0.03 * here.std()  # half precision on the GPU


def test_biases_beside_packed_linears_are_kept_where_the_architecture_has_them(maker):
    config = {**LLAMA, "model_type": "qwen2"}
    state, exact = packed(random_weights(config), GPTQ)
    source = maker.hugging_face({**config, "quantization_config": GPTQ}, state)
    opened = open_model(source)
    bias = opened.files.weight("decoder.1", "self_attn.q_proj.bias")
    assert bias.abs().min() > 0
    assert torch.equal(bias, exact["model.layers.1.self_attn.q_proj.bias"])
    weight = opened.files.weight("decoder.1", "self_attn.q_proj.weight")
    assert torch.equal(weight.dequantize(), exact["model.layers.1.self_attn.q_proj.weight"])
    assert (opened.files.quantize, opened.files.usual_quantize) == ("int4", None)


def test_linears_that_are_packed_as_one_matrix_are_cut_apart(maker):
    config = {**LLAMA, "model_type": "phi3", "pad_token_id": 0, "eos_token_id": 2}
    fused = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj"}
    fused |= {"gate_proj": "gate_up_proj", "up_proj": "gate_up_proj"}
    parts: dict[str, list[torch.Tensor]] = {}
    for name, weight in random_weights(config).items():
        *folders, last = name.removesuffix(".weight").split(".")
        parts.setdefault(".".join([*folders, fused.get(last, last), "weight"]), []).append(weight)
    state, exact = packed({name: torch.cat(rows) for name, rows in parts.items()}, AWQ)
    files = open_model(maker.hugging_face({**config, "quantization_config": AWQ}, state)).files
    ours = [
        files.weight("decoder.0", f"self_attn.{part}_proj.weight").dequantize() for part in "qkv"
    ]
    assert torch.equal(torch.cat(ours), exact["model.layers.0.self_attn.qkv_proj.weight"])
    ours = [
        files.weight("decoder.1", f"mlp.{part}_proj.weight").dequantize() for part in ("gate", "up")
    ]
    assert torch.equal(torch.cat(ours), exact["model.layers.1.mlp.gate_up_proj.weight"])


def test_conv1d_weights_of_gpt2_are_packed_as_linears(maker, tmp_path):
    weights = random_weights(GPT2)
    state, exact = packed(weights, GPTQ)
    for name in list(state):
        if name.endswith(".bias") and name in weights:
            state[name] = weights[name]
    source = maker.hugging_face({**GPT2, "quantization_config": GPTQ}, state)
    convert(source, tmp_path / "out")
    store = open_store(tmp_path / "out")
    weight = store.block("decoder.0")["attn.c_attn.weight"]
    assert weight.format.name == "int4-g32-asym"
    assert torch.equal(weight.dequantize(), exact["transformer.h.0.attn.c_attn.weight"])


def test_what_the_checkpoint_left_float_can_be_quantised_beside_it(maker, tmp_path):
    state, exact = packed(random_weights(LLAMA), AWQ)
    source = maker.hugging_face({**LLAMA, "quantization_config": AWQ}, state)
    convert(source, tmp_path / "out", quantize="int8")
    store = open_store(tmp_path / "out")
    assert store.quantize == "int4"
    fixed = store.block("fixed")
    assert isinstance(fixed["lm_head.weight"], QuantizedTensor)
    weight = store.block("decoder.1")["mlp.down_proj.weight"]
    assert torch.equal(weight.dequantize(), exact["model.layers.1.mlp.down_proj.weight"])


def test_a_bias_that_llama_has_no_place_for_is_refused_unless_it_is_zero(maker, tmp_path):
    state, _ = packed(random_weights(LLAMA), GPTQ)
    state["model.layers.1.mlp.down_proj.bias"] += 1
    source = maker.hugging_face({**LLAMA, "quantization_config": GPTQ}, state)
    with pytest.raises(ModelFileError, match=r"layers\.1\.mlp\.down_proj\.bias is not zero"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_reordered_inputs_are_refused_with_the_way_out(maker, tmp_path):
    state, _ = packed(random_weights(LLAMA), GPTQ)
    state["model.layers.0.mlp.up_proj.g_idx"] = state["model.layers.0.mlp.up_proj.g_idx"].flip(0)
    settings = {**GPTQ, "desc_act": True}
    source = maker.hugging_face({**LLAMA, "quantization_config": settings}, state)
    with pytest.raises(ModelFileError, match=r"up_proj\.g_idx \(desc_act\).*martlet quantize"):
        convert(source, tmp_path / "out")


def test_a_method_that_is_not_known_is_named(maker, tmp_path):
    settings = {"quant_method": "compressed-tensors", "bits": 4}
    source = maker.hugging_face({**LLAMA, "quantization_config": settings}, random_weights(LLAMA))
    with pytest.raises(ModelFileError, match=r"quant_method.*'compressed-tensors'.*gptq or awq"):
        convert(source, tmp_path / "out")


def test_a_linear_of_another_size_than_the_configuration_asks_for_is_refused(maker, tmp_path):
    state, _ = packed(random_weights(LLAMA), GPTQ)
    config = {**LLAMA, "intermediate_size": 128, "quantization_config": GPTQ}
    with pytest.raises(ModelFileError, match=r"\[96, 64\], the configuration asks for \[128, 64\]"):
        convert(maker.hugging_face(config, state), tmp_path / "out")
