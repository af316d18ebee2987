import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType as Type
from torch import Tensor

from martlet.conversion.gguf import GGUFSource

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "models"))

from gguf_reference import opened, reference
from gguf_writing import llama3_factors, write_gguf
from oracle_routes import steps


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


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

GEMMA3 = {
    **HEAD,
    "num_hidden_layers": 6,
    "sliding_window": 5,
    "query_pre_attn_scalar": 24,
    "sliding_window_pattern": 6,
}

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
        GEMMA3,
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


class Fused:
    """A GLM whose queries, keys and values are one matrix, as in the first files of GLM-4."""

    def __init__(self, model: Any) -> None:
        self.config = model.config
        self._weights = model.state_dict()

    def state_dict(self) -> dict[str, Tensor]:
        fused = {}
        for name, value in self._weights.items():
            if "q_proj" in name:
                parts = [self._weights[name.replace("q_proj", f"{x}_proj")] for x in "qkv"]
                index, kind = name.split(".")[2], name.split(".")[-1]
                attention = f"encoder.layers.{index}.self_attention.query_key_value.{kind}"
                fused[attention] = torch.cat(parts)
            elif "k_proj" not in name and "v_proj" not in name:
                fused[name] = value
        return fused


@pytest.mark.oracle
def test_matrices_that_are_one_in_the_file_are_cut(tmp_path: Path) -> None:
    model = reference("Glm", **HEAD, attention_bias=True)
    path = write_gguf(Fused(model), tmp_path / "m.gguf", "chatglm")
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


def gemma3_linear_keys(writer: gguf.GGUFWriter) -> None:
    window_key(writer)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)


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
    "linear, and only where all is seen": (
        "gemma3",
        "Gemma3",
        {
            "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        gemma3_linear_keys,
    ),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", SCALINGS)
def test_positions_are_stretched_as_in_transformers(tmp_path: Path, name: str) -> None:
    architecture, family, rope, extra = SCALINGS[name]
    options = GEMMA3 if family == "Gemma3" else {}
    model = reference(family, rope_parameters=rope, **options)
    path = write_gguf(model, tmp_path / "m.gguf", architecture, extra=extra)
    assert steps(opened(path), model) < 1e-5


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kind", "error"),
    # Processors round activations to 16 bits; zeros of Q4_1 are rounded besides, and all of Q5_1.
    [
        (Type.Q8_0, 1e-3),
        (Type.Q5_0, 1e-3),
        (Type.Q4_0, 1e-3),
        (Type.Q4_1, 5e-3),
        (Type.Q5_1, 3e-2),
    ],
)
def test_blocks_are_computed_with_as_the_numbers_that_they_stand_for(
    tmp_path: Path, kind: Type, error: float
) -> None:
    model = reference("Llama")
    path = write_gguf(model, tmp_path / "m.gguf", "llama", matrices=kind)
    for value in model.state_dict().values():
        if value.ndim == 2:
            blocks = gguf.quants.quantize(value.numpy(), kind)
            value.copy_(torch.from_numpy(np.array(gguf.quants.dequantize(blocks, kind))))
    assert steps(opened(path), model) < error
