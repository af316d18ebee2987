"""Sound GGUF files of models that have been tampered with: a typed error, or what the keys say."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFWriter, TokenType
from gguf.constants import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from martlet.checkpoint.gguf import read_gguf_header
from martlet.checkpoint.gguf_parts import open_gguf
from martlet.conversion.gguf import GGUFSource
from martlet.conversion.gguf_config import ARCHITECTURES, gguf_config
from martlet.conversion.gguf_keys import ArchitectureKeys
from martlet.conversion.gguf_names import GGUFNames
from martlet.conversion.gguf_tensors import GGUFTensors
from martlet.conversion.source_files import SourceFiles
from martlet.errors import MartletError
from martlet.models.config import load_architecture

sys.path.insert(0, str(Path(__file__).parents[1] / "conversion"))

from gguf_writing import write_gguf

KEYS: dict[str, Any] = {
    "context_length": 128,
    "embedding_length": 64,
    "block_count": 1,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "attention.key_length": 16,
    "attention.value_length": 16,
    "rope.freq_base": 10000.0,
    "rope.dimension_count": 16,
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 32,
    "rope.scaling.attn_factor": 1.0,
    "attention.sliding_window": 5,
    "attention.sliding_window_pattern": 2,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 5.0,
    "logit_scale": 2.0,
    "residual_scale": 0.5,
    "embedding_scale": 12.0,
}


def vocabulary(writer: GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(["a", "b", "ab", "<|im_end|>"])
    writer.add_token_types([int(TokenType.NORMAL)] * 3 + [int(TokenType.CONTROL)])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(3)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    model = transformers.LlamaForCausalLM(config)
    return write_gguf(model, path, "llama", matrices=Type.Q4_1, extra=vocabulary)


@given(
    st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.booleans(), st.integers(0, 255)),
        min_size=1,
        max_size=3,
    )
)
@settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_changed_bytes_give_a_typed_error_or_a_whole_model(
    tmp_path: Path, sound: Path, changes: list[tuple[float, bool, int]]
) -> None:
    content = bytearray(sound.read_bytes())
    head = read_gguf_header(sound).data_offset
    for place, in_head, value in changes:
        content[int(place * (head if in_head else len(content)))] = value
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    try:
        source = GGUFSource(path)
        files = SourceFiles(path, source)
        for block in files.block_names:
            for weight in files.block_weights(block):
                assert tuple(source.tensor(weight.name).shape) == weight.shape
        files.load_tokenizer()
    except MartletError as error:
        assert "\n" not in str(error)


HOSTILE_VALUES = (
    0, -1, 1, 2, 3, 7, 1 << 24, 1 << 31, 1 << 63, -1.0, 1e-30, 1e30, 0.5, float("nan"),
    float("inf"), "x", "", True, False, [], [1], [64, 64], [True, False], ["a"], [1.5],
)  # fmt: skip


@given(
    st.sampled_from(sorted(ARCHITECTURES)),
    st.sets(st.sampled_from(sorted(KEYS)), max_size=12),
    st.dictionaries(
        st.sampled_from(sorted(KEYS)), st.sampled_from(HOSTILE_VALUES), min_size=0, max_size=2
    ),
)
@settings(max_examples=600, deadline=None)
def test_keys_of_any_value_give_a_typed_error_or_an_architecture(
    sound: Path, architecture: str, left_out: set[str], hostile: dict[str, Any]
) -> None:
    keys = {name: value for name, value in KEYS.items() if name not in left_out} | hostile
    metadata = {f"{architecture}.{name}": value for name, value in keys.items()}
    metadata["general.architecture"] = architecture
    tensors = GGUFTensors(open_gguf(sound))
    try:
        config = gguf_config(ArchitectureKeys(Path("m.gguf"), metadata), tensors)
        specs = load_architecture(config).block_specs()
    except MartletError as error:
        assert "\n" not in str(error)
        return
    names = GGUFNames(architecture, config, tensors)
    for block in specs[:3]:
        for spec in block.tensors:
            assert names.place(block.prefix + spec.name).name
