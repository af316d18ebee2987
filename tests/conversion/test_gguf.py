import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf.constants import GGMLQuantizationType as Type
from torch import Tensor

from martlet.conversion.gguf import GGUFSource
from martlet.errors import ModelFileError
from martlet.models.config import load_architecture
from martlet.quantization.scheme import GroupedTensor

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from gguf_writing import llama3_factors, write_gguf
from oracle_routes import Model, steps

SIZES = {
    "vocab_size": 160,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def reference(name: str, **options: Any) -> Any:
    config_class = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    config = getattr(transformers, config_class)(**{**SIZES, **options})
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    with torch.inference_mode(False):
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval().requires_grad_(False)
    for key, value in model.state_dict().items():
        if value.ndim == 2:
            value.normal_(0, 1.0 if "embed" in key else 1.2 * value.shape[1] ** -0.5)
        else:
            value.add_(torch.randn(value.shape) * 0.2)
    return model


def opened(path: Path) -> Model:
    source = GGUFSource(path)
    architecture = load_architecture(source.config)
    blocks = {}
    for block in architecture.block_specs():
        weights = {}
        for spec in block.tensors:
            name = block.prefix + spec.name
            assert source.shape(name) == spec.shape
            weight = source.tensor(name)
            form = source.stored_as(name).form
            assert (weight.dtype if isinstance(weight, Tensor) else weight.format) == form
            assert tuple(weight.shape) == spec.shape
            weights[spec.name] = weight.clone() if isinstance(weight, Tensor) else weight
        blocks[block.name] = weights
    return Model(architecture, blocks)


def gemma2_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_attn_logit_softcapping(1.5)
    writer.add_final_logit_softcapping(3.0)
    writer.add_sliding_window(5)


def window_key(writer: gguf.GGUFWriter) -> None:
    writer.add_sliding_window(5)


def phi3_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(PHI3_ATTENTION_FACTOR)
    for name, factors in PHI3_FACTORS.items():
        writer.add_tensor(f"rope_factors_{name}.weight", np.array(factors, dtype=np.float32))


def minicpm_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_embedding_scale(12.0)
    writer.add_residual_scale(1.4 / math.sqrt(2))
    writer.add_logit_scale(64 / 40)


PHI3_FACTORS = {"short": [1.0 + 0.1 * i for i in range(8)], "long": [1.5 + i for i in range(8)]}
PHI3_ATTENTION_FACTOR = math.sqrt(1 + math.log(128 / 64) / math.log(64))
PHI3_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": PHI3_FACTORS["short"],
    "long_factor": PHI3_FACTORS["long"],
}
GRANITE = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 1.4 / math.sqrt(2),
    "logits_scaling": 64 / 40,
    "attention_multiplier": 0.25,
}
WINDOWS = {"num_hidden_layers": 4, "sliding_window": 5}
CAPS = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 3.0}
HEAD = {"head_dim": 24}

# The architecture in the file, transformers' class, its options, and keys that only it has.
FAMILIES = {
    "llama": ("llama", "Llama", {}, None),
    "llama with biases": ("llama", "Llama", {"attention_bias": True}, None),
    "llama tied": ("llama", "Llama", {"tie_word_embeddings": True}, None),
    "mistral": ("llama", "Mistral", {"sliding_window": None, "head_dim": 32}, None),
    "qwen2": ("qwen2", "Qwen2", {}, None),
    "qwen3": ("qwen3", "Qwen3", HEAD, None),
    "gemma": ("gemma", "Gemma", HEAD, None),
    "gemma2": (
        "gemma2",
        "Gemma2",
        {**HEAD, **WINDOWS, **CAPS, "query_pre_attn_scalar": 24},
        gemma2_keys,
    ),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {**HEAD, **WINDOWS, "query_pre_attn_scalar": 24, "sliding_window_pattern": 6},
        window_key,
    ),
    "mistral with a window": ("llama", "Mistral", {"sliding_window": 5}, window_key),
    "phi3": (
        "phi3",
        "Phi3",
        {"rope_parameters": PHI3_ROPE, "original_max_position_embeddings": 64},
        phi3_keys,
    ),
    "minicpm": ("minicpm", "Granite", GRANITE, minicpm_keys),
    "glm": ("chatglm", "Glm", {**HEAD, "attention_bias": True}, None),
    "glm4": ("glm4", "Glm4", HEAD, None),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_gives_the_logits_of_transformers(tmp_path: Path, name: str) -> None:
    architecture, family, options, extra = FAMILIES[name]
    model = reference(family, **options)
    path = write_gguf(model, tmp_path / "m.gguf", architecture, extra=extra)
    is_tied = GGUFSource(path).config["tie_word_embeddings"]
    assert is_tied is bool(model.config.tie_word_embeddings)
    assert steps(opened(path), model) < 1e-5


def linear_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def yarn_keys(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)


def llama3_keys(writer: gguf.GGUFWriter) -> None:
    factors = llama3_factors(LLAMA3, 16)
    assert 1.0 in factors and 8.0 in factors and len(set(factors)) > 2
    writer.add_tensor("rope_freqs.weight", factors)


THETA = {"rope_theta": 10000.0}
LLAMA3 = {
    **THETA,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
SCALINGS = {
    "linear": ("llama", "Llama", {**THETA, "rope_type": "linear", "factor": 4.0}, linear_keys),
    "yarn": (
        "qwen2",
        "Qwen2",
        {**THETA, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        yarn_keys,
    ),
    "llama3": ("llama", "Llama", LLAMA3, llama3_keys),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", SCALINGS)
def test_positions_are_stretched_as_in_transformers(tmp_path: Path, name: str) -> None:
    architecture, family, rope, extra = SCALINGS[name]
    model = reference(family, rope_parameters=rope)
    path = write_gguf(model, tmp_path / "m.gguf", architecture, extra=extra)
    assert steps(opened(path), model) < 1e-5


@pytest.fixture(scope="module")
def llama() -> Any:
    return reference("Llama")


@pytest.mark.parametrize(
    ("kind", "form", "error"),
    [
        (Type.F16, "torch.float16", 1e-3),
        (Type.BF16, "torch.bfloat16", 8e-3),
        (Type.Q8_0, "int8-g32", 8e-3),
        (Type.Q5_0, "int8-g32", 0.06),
        (Type.Q4_0, "int4-g32", 0.12),
        (Type.Q4_1, "int4-g32-asym", 0.12),
    ],
)
def test_matrices_of_every_type_come_in_our_order_and_format(
    tmp_path: Path, llama: Any, kind: Type, form: str, error: float
) -> None:
    path = write_gguf(llama, tmp_path / "m.gguf", "llama", matrices=kind)
    source = GGUFSource(path)
    for name in ("model.layers.1.self_attn.k_proj.weight", "model.embed_tokens.weight"):
        expected = llama.state_dict()[name]
        weight = source.tensor(name)
        found = weight if isinstance(weight, Tensor) else weight.dequantize()
        distance = (found.float() - expected).norm() / expected.norm()
        assert error / 8 < float(distance) < error
        stored = source.stored_as(name).form
        assert (stored.name if isinstance(weight, GroupedTensor) else str(stored)) == form
    assert source.tensor("model.norm.weight").dtype == torch.float32
    opened(path)


REFUSED = {
    "an expert": (
        lambda writer: writer.add_expert_count(8),
        r"llama\.expert_count is 8; supported is 0 alone",
    ),
    "an unknown key": (
        lambda writer: writer.add_float32("llama.attention.scale", 0.5),
        r"has the key llama\.attention\.scale = 0\.5, which is not known",
    ),
    "an unknown tensor": (
        lambda writer: writer.add_tensor("blk.0.attn_sinks", np.zeros(4, np.float32)),
        r"has blk\.0\.attn_sinks, which llama as it is computed here does not have",
    ),
    "a value that is no size": (
        lambda writer: writer.add_array("llama.rope.dimension_count", [8, 16]),
        r"llama\.rope\.dimension_count is \[8, 16\]; supported is one integer",
    ),
    "a value of another length": (
        lambda writer: writer.add_uint32("llama.rope.scaling.original_context_length", 0),
        r"original_context_length is 0; supported is one integer",
    ),
    "a scaling that nobody knows": (
        lambda writer: writer.add_string("llama.rope.scaling.type", "wavy"),
        r"llama\.rope\.scaling\.type is 'wavy'; supported is none or linear",
    ),
    "factors that are no numbers": (
        lambda writer: writer.add_tensor("rope_freqs.weight", np.full(8, np.nan, np.float32)),
        r"rope_freqs\.weight has a number that is not above zero",
    ),
    "a type of blocks that is not read": (
        lambda writer: writer.add_tensor(
            "blk.0.x", np.zeros((1, 66), np.uint8), raw_dtype=Type.IQ2_XXS
        ),
        r"blk\.0\.x has numbers of type IQ2_XXS, which is not supported; supported are F32",
    ),
    "a template that is no text": (
        lambda writer: writer.add_uint32("tokenizer.chat_template", 5),
        r"tokenizer\.chat_template is 5, expected text",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_here_is_refused_by_name(
    tmp_path: Path, llama: Any, name: str
) -> None:
    extra, reason = REFUSED[name]
    path = write_gguf(llama, tmp_path / "m.gguf", "llama", extra=extra)
    with pytest.raises(ModelFileError, match=reason) as caught:
        GGUFSource(path)
    assert str(path) in str(caught.value)


def test_an_architecture_that_is_not_supported_is_named(tmp_path: Path) -> None:
    for name in ("mamba", "clip"):
        writer = gguf.GGUFWriter(tmp_path / "m.gguf", name)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with pytest.raises(ModelFileError, match=f"architecture is '{name}', which is not supp"):
            GGUFSource(tmp_path / "m.gguf")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path, llama: Any) -> None:
    path = write_gguf(
        llama, tmp_path / "m.gguf", "llama", skip=("model.layers.1.mlp.up_proj.weight",)
    )
    source = GGUFSource(path)
    with pytest.raises(ModelFileError, match=r"has no tensor blk\.1\.ffn_up\.weight"):
        source.stored_as("model.layers.1.mlp.up_proj.weight")
