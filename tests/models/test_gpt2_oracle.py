"""GPT-2 and CPM-1 against transformers, on tiny random models taken through our converter."""

from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

SIZES = {"vocab_size": 101, "n_positions": 200, "n_embd": 42, "n_layer": 3, "n_head": 3}


def _reference(folder: Path, **options: Any) -> Any:
    config = transformers.GPT2Config(
        **{**SIZES, "bos_token_id": 0, "eos_token_id": 0, **options}, attn_implementation="eager"
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith(("wte.weight", "wpe.weight")):
            parameter.copy_(noise)
        elif parameter.dim() == 2:  # Conv1D is (in, out), lm_head (out, in): near square either way
            parameter.copy_(noise * 1.2 * min(parameter.shape) ** -0.5)
        else:
            parameter.copy_(float("ln_" in name and name.endswith("weight")) + 0.2 * noise)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": False},
        {"activation_function": "gelu", "n_inner": 77},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True},
        {"layer_norm_epsilon": 0.3, "n_embd": 64, "n_head": 1, "n_layer": 1},
        {"activation_function": "relu"},
    ],
    ids=lambda options: ",".join(options) or "plain",
)
def test_logits_equal_those_of_transformers(
    options: dict[str, Any], tmp_path: Path, convert_model: Any, oracle: Any
) -> None:
    reference = _reference(tmp_path / "source", **options)
    oracle.assert_whole_and_in_steps(convert_model(tmp_path / "source"), reference)


def test_logits_are_right_up_to_the_last_position(
    tmp_path: Path, convert_model: Any, oracle: Any
) -> None:
    reference = _reference(tmp_path / "source")
    model = convert_model(tmp_path / "source")
    token_ids = oracle.token_ids(1, 200)
    oracle.assert_close(
        model.run("decoder", token_ids, model.new_cache(1, 200)), reference(token_ids).logits
    )


def test_a_row_among_longer_ones_equals_transformers_alone(
    tmp_path: Path, convert_model: Any, oracle: Any
) -> None:
    reference = _reference(tmp_path / "source")
    oracle.assert_rows_are_as_alone(convert_model(tmp_path / "source"), reference)


def test_int8_stays_near_the_float_model(tmp_path: Path, convert_model: Any, oracle: Any) -> None:
    reference = _reference(tmp_path / "source", n_embd=96)
    oracle.assert_int8_is_near(convert_model(tmp_path / "source", quantize="int8"), reference)
