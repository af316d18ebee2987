"""Llama against transformers, on tiny random models taken through our converter."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

SIZES = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 77,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 200,
}


def _reference(folder: Path, **options: Any) -> Any:
    config = transformers.LlamaConfig(**{**SIZES, **options}, attn_implementation="eager")
    model = transformers.LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("embed_tokens.weight"):
            parameter.copy_(noise)
        elif parameter.dim() == 2:
            parameter.copy_(noise * 1.2 * parameter.shape[1] ** -0.5)
        else:
            parameter.copy_(1 + 0.2 * noise)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_key_value_heads": 1},
        {"num_key_value_heads": 4},
        {"tie_word_embeddings": True},
        {"head_dim": 22},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
        {"rms_norm_eps": 0.3, "num_hidden_layers": 1},
    ],
    ids=lambda options: ",".join(map(str, options.items())) or "plain",
)
def test_logits_equal_those_of_transformers(
    options: dict[str, Any], tmp_path: Path, convert_model: Any, oracle: Any
) -> None:
    reference = _reference(tmp_path / "source", **options)
    oracle.assert_whole_and_in_steps(convert_model(tmp_path / "source"), reference)


def test_the_older_form_of_the_rope_settings_is_read(
    tmp_path: Path, convert_model: Any, oracle: Any
) -> None:
    theirs = {"rope_type": "default", "rope_theta": 500.0}
    reference = _reference(tmp_path / "source", rope_parameters=theirs)
    path = tmp_path / "source" / "config.json"
    config = json.loads(path.read_text())
    assert config.pop("rope_parameters") == theirs
    path.write_text(json.dumps({**config, "rope_theta": 500.0, "rope_scaling": None}))
    model = convert_model(tmp_path / "source")
    token_ids = oracle.token_ids(1, 40)
    oracle.assert_close(model.run("decoder", token_ids), reference(token_ids).logits)


def test_logits_are_right_up_to_the_last_position(
    tmp_path: Path, convert_model: Any, oracle: Any
) -> None:
    reference = _reference(tmp_path / "source", max_position_embeddings=1500)
    model = convert_model(tmp_path / "source")
    token_ids = oracle.token_ids(1, 1500)
    theirs = reference(token_ids).logits
    oracle.assert_close(model.run("decoder", token_ids), theirs)
    cache = model.new_cache(1, 1500)
    parts = [model.run("decoder", p, cache) for p in token_ids.split([1490] + [1] * 10, dim=1)]
    oracle.assert_close(torch.cat(parts, dim=1), theirs)


def test_a_row_among_longer_ones_equals_transformers_alone(
    tmp_path: Path, convert_model: Any, oracle: Any
) -> None:
    reference = _reference(tmp_path / "source")
    oracle.assert_rows_are_as_alone(convert_model(tmp_path / "source"), reference)


def test_int8_stays_near_the_float_model(tmp_path: Path, convert_model: Any, oracle: Any) -> None:
    reference = _reference(tmp_path / "source", hidden_size=96, intermediate_size=160)
    oracle.assert_int8_is_near(convert_model(tmp_path / "source", quantize="int8"), reference)
