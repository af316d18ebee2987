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

from martlet.checkpoint.gguf_parts import open_gguf
from martlet.conversion.gguf import GGUFSource
from martlet.conversion.gguf_config import gguf_config
from martlet.conversion.gguf_keys import ArchitectureKeys
from martlet.conversion.gguf_tensors import GGUFTensors
from martlet.errors import ModelFileError
from martlet.models.config import load_architecture
from martlet.quantization.scheme import GroupedTensor

sys.path.insert(0, str(Path(__file__).parent))

from gguf_reference import opened, reference
from gguf_writing import write_gguf


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


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


@pytest.mark.parametrize(
    ("architecture", "layers", "scale"),
    [("gemma2", 46, 16), ("gemma2", 26, 24), ("gemma3", 62, 16), ("gemma3", 34, 24)],
)
def test_gemmas_of_27b_scale_queries_by_the_width_of_the_model(
    tmp_path: Path, llama: Any, architecture: str, layers: int, scale: int
) -> None:
    path = write_gguf(llama, tmp_path / "m.gguf", "llama")
    values = {
        "context_length": 128,
        "embedding_length": 64,
        "block_count": layers,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.key_length": 24,
        "attention.value_length": 24,
        "attention.layer_norm_rms_epsilon": 9.999999974752427e-07,
    }
    metadata: dict[str, Any] = {f"{architecture}.{key}": value for key, value in values.items()}
    keys = ArchitectureKeys(path, {**metadata, "general.architecture": architecture})
    config = gguf_config(keys, GGUFTensors(open_gguf(path)))
    assert config["query_pre_attn_scalar"] == scale
    assert config["rms_norm_eps"] == 1e-6
    load_architecture(config)
