"""The T5 family against transformers, on tiny random models taken through our converter."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")
save_file = pytest.importorskip("safetensors.torch").save_file
pytestmark = pytest.mark.oracle

V11 = {
    "vocab_size": 101,
    "d_model": 42,
    "d_kv": 10,
    "d_ff": 54,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
V10 = {**V11, "feed_forward_proj": "relu", "tie_word_embeddings": True}
# float32 on both sides, the order of the sums differs. Scores without a scale make the softmax
# steep, which magnifies that: 1.2e-5 of the largest value was measured.
TOLERANCE = 5e-5


def _reference(folder: Path, config: dict[str, Any], model_type: str = "t5") -> Any:
    """A model with random weights, also written as a folder in the layout of the hub."""
    settings = {key: value for key, value in config.items() if key != "attn_scale"}
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**settings, attn_implementation="eager")
    ).eval()
    if not config["tie_word_embeddings"]:
        # transformers 5 ties the two at first and parts them when a file has both.
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() == 1:
            parameter.copy_(1 + 0.2 * noise)
        elif name.endswith(("shared.weight", "relative_attention_bias.weight")):
            parameter.copy_(noise)
        else:
            parameter.copy_(noise * 1.2 * parameter.shape[1] ** -0.5)
    folder.mkdir()
    fields = {"model_type": model_type, "is_encoder_decoder": True, **config}
    (folder / "config.json").write_text(json.dumps(fields))
    weights = {name: value.clone() for name, value in model.named_parameters()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    if config.get("attn_scale"):
        model = copy.deepcopy(model)
        for name, parameter in model.named_parameters():
            if name.endswith(".q.weight"):
                parameter.mul_(config["d_kv"] ** -0.5)
    return model


def _token_ids(*shape: int, seed: int = 11) -> Tensor:
    return torch.randint(0, 101, shape, generator=torch.Generator().manual_seed(seed))


def _assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.5  # flat values would let any mistake pass
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().max() <= TOLERANCE * theirs.abs().max()


CONFIGS = [
    pytest.param(V11, "t5", id="v1.1"),
    pytest.param({**V11, "feed_forward_proj": "gelu"}, "t5", id="not gated"),
    pytest.param({**V11, "feed_forward_proj": "gated-relu"}, "t5", id="gated relu"),
    pytest.param({**V11, "num_heads": 1, "d_kv": 7, "num_decoder_layers": 1}, "t5", id="one head"),
    pytest.param({**V11, "layer_norm_epsilon": 0.3}, "t5", id="epsilon"),
    pytest.param(
        {**V11, "relative_attention_num_buckets": 9, "relative_attention_max_distance": 21},
        "t5",
        id="odd buckets",
    ),
    pytest.param(V11, "mt5", id="mT5"),
    pytest.param({**V11, "attn_scale": False}, "eva", id="EVA 1.0"),
    pytest.param({**V11, "attn_scale": True}, "eva", id="EVA 2.0"),
]


@pytest.mark.parametrize(("config", "model_type"), CONFIGS)
def test_both_stacks_equal_those_of_transformers(
    config: dict[str, Any], model_type: str, tmp_path: Path, convert_model: Any
) -> None:
    reference = _reference(tmp_path / "source", config, model_type)
    _compare_both_stacks(reference, convert_model(tmp_path / "source"))


def test_the_first_t5_ties_and_scales_its_head(tmp_path: Path, convert_model: Any) -> None:
    reference = _reference(tmp_path / "source", V10)
    # Logits are divided by sqrt(d_model); a larger final norm keeps them from being flat.
    reference.decoder.final_layer_norm.weight.mul_(5)
    reference.save_pretrained(tmp_path / "saved")
    _compare_both_stacks(reference, convert_model(tmp_path / "saved"))


def test_an_untied_head_saved_by_transformers_is_found(tmp_path: Path, convert_model: Any) -> None:
    reference = _reference(tmp_path / "source", V11)
    reference.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["tie_word_embeddings"] is True  # else there is nothing to find
    _compare_both_stacks(reference, convert_model(tmp_path / "saved"))


def _compare_both_stacks(reference: Any, model: Any) -> None:
    encoder_ids, decoder_ids = _token_ids(2, 19), _token_ids(2, 23, seed=12)
    theirs = reference(input_ids=encoder_ids, decoder_input_ids=decoder_ids)
    whole_cache, cache = model.new_cache(2, 23), model.new_cache(2, 23)
    _assert_close(model.encode(encoder_ids, whole_cache), theirs.encoder_last_hidden_state)
    model.encode(encoder_ids, cache)
    _assert_close(model.run("decoder", decoder_ids, whole_cache), theirs.logits)
    cuts = [6] + [1] * 17
    parts = [model.run("decoder", part, cache) for part in decoder_ids.split(cuts, dim=1)]
    _assert_close(torch.cat(parts, dim=1), theirs.logits)


def test_distances_beyond_the_last_bucket_are_right(tmp_path: Path, convert_model: Any) -> None:
    reference = _reference(tmp_path / "source", V11)
    model = convert_model(tmp_path / "source")
    encoder_ids, decoder_ids = _token_ids(1, 400), _token_ids(1, 300)
    theirs = reference(input_ids=encoder_ids, decoder_input_ids=decoder_ids)
    cache = model.new_cache(1, 300)
    _assert_close(model.encode(encoder_ids, cache), theirs.encoder_last_hidden_state)
    parts = [model.run("decoder", part, cache) for part in decoder_ids.split([270, 29, 1], dim=1)]
    _assert_close(torch.cat(parts, dim=1), theirs.logits)


def test_a_row_among_longer_ones_equals_transformers_alone(
    tmp_path: Path, convert_model: Any
) -> None:
    reference = _reference(tmp_path / "source", V11)
    model = convert_model(tmp_path / "source")
    encoder_lengths, lengths = [31, 1, 12], [3, 17, 9]
    encoder_ids, decoder_ids = _token_ids(3, 31), _token_ids(3, 17, seed=12)
    following = _token_ids(3, 2, seed=13)
    cache = model.new_cache(3, 20)
    hidden = model.encode(encoder_ids, cache, torch.tensor(encoder_lengths))
    ours = model.run("decoder", decoder_ids, cache, torch.tensor(lengths))
    after = model.run("decoder", following, cache)
    for row, (encoder_length, length) in enumerate(zip(encoder_lengths, lengths, strict=True)):
        sequence = [decoder_ids[row : row + 1, :length], following[row : row + 1]]
        theirs = reference(
            input_ids=encoder_ids[row : row + 1, :encoder_length],
            decoder_input_ids=torch.cat(sequence, dim=1),
        )
        _assert_close(hidden[row, :encoder_length], theirs.encoder_last_hidden_state[0])
        _assert_close(ours[row, :length], theirs.logits[0, :length])
        _assert_close(after[row], theirs.logits[0, length:])


def test_int8_stays_near_the_float_model(tmp_path: Path, convert_model: Any) -> None:
    sizes = {"d_model": 96, "d_kv": 16, "d_ff": 112}
    reference = _reference(tmp_path / "source", {**V11, **sizes, "attn_scale": True}, "eva")
    model = convert_model(tmp_path / "source", quantize="int8")
    encoder_ids, decoder_ids = _token_ids(1, 30), _token_ids(1, 40, seed=12)
    theirs = reference(input_ids=encoder_ids, decoder_input_ids=decoder_ids).logits
    for cuts in ([40], [1] * 40):
        cache = model.new_cache(1, 40)
        model.encode(encoder_ids, cache)
        parts = [model.run("decoder", part, cache) for part in decoder_ids.split(cuts, dim=1)]
        # Rounding to int8 puts a noise of 0.7 % on every weight; it adds up over two stacks.
        error = (torch.cat(parts, dim=1) - theirs).norm() / theirs.norm()
        assert 1e-4 < error < 0.08
