"""GPT-2 and CPM-1 against transformers, on tiny random models taken through our converter."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.oracle

SIZES = {"vocab_size": 101, "n_positions": 200, "n_embd": 42, "n_layer": 3, "n_head": 3}
# float32 on both sides, the order of the sums differs: 1e-6 of the largest logit was measured.
TOLERANCE = 1e-5


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


def _token_ids(*shape: int) -> Tensor:
    return torch.randint(0, 101, shape, generator=torch.Generator().manual_seed(11))


def _assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.5  # flat logits would let any mistake pass
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


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
    options: dict[str, Any], tmp_path: Path, convert_model: Any
) -> None:
    reference = _reference(tmp_path / "source", **options)
    model = convert_model(tmp_path / "source")
    token_ids = _token_ids(2, 23)
    theirs = reference(token_ids).logits
    _assert_close(model.run("decoder", token_ids), theirs)
    cache = model.new_cache(2, 23)
    parts = [model.run("decoder", part, cache) for part in token_ids.split([6] + [1] * 17, dim=1)]
    _assert_close(torch.cat(parts, dim=1), theirs)


def test_logits_are_right_up_to_the_last_position(tmp_path: Path, convert_model: Any) -> None:
    reference = _reference(tmp_path / "source")
    model = convert_model(tmp_path / "source")
    token_ids = _token_ids(1, 200)
    _assert_close(
        model.run("decoder", token_ids, model.new_cache(1, 200)), reference(token_ids).logits
    )


def test_a_row_among_longer_ones_equals_transformers_alone(
    tmp_path: Path, convert_model: Any
) -> None:
    reference = _reference(tmp_path / "source")
    model = convert_model(tmp_path / "source")
    lengths = [17, 4, 30]
    token_ids = _token_ids(3, 30)
    cache = model.new_cache(3, 40)
    ours = model.run("decoder", token_ids, cache, torch.tensor(lengths))
    following = _token_ids(3, 2)
    after = model.run("decoder", following, cache)
    for row, length in enumerate(lengths):
        alone = torch.cat([token_ids[row : row + 1, :length], following[row : row + 1]], dim=1)
        theirs = reference(alone).logits[0]
        _assert_close(ours[row, :length], theirs[:length])
        _assert_close(after[row], theirs[length:])


def test_int8_stays_near_the_float_model(tmp_path: Path, convert_model: Any) -> None:
    reference = _reference(tmp_path / "source", n_embd=96)
    model = convert_model(tmp_path / "source", quantize="int8")
    token_ids = _token_ids(1, 40)
    theirs = reference(token_ids).logits
    cache = model.new_cache(1, 40)
    stepped = torch.cat(
        [model.run("decoder", part, cache) for part in token_ids.split(1, dim=1)], dim=1
    )
    for ours in (model.run("decoder", token_ids), stepped):
        # Rounding to int8 puts a noise of 0.7 % on every weight; it adds up over three layers.
        assert 1e-4 < (ours - theirs).norm() / theirs.norm() < 0.05
