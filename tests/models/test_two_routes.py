"""The same result by two routes: whole or step by step, in a batch or alone. No oracle needed."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from martlet.models.architecture import FIXED
from martlet.models.config import load_architecture

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 53,
    "n_positions": 48,
    "n_embd": 40,
    "n_layer": 3,
    "n_head": 5,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 53,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 48,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 53,
    "d_model": 40,
    "d_kv": 12,
    "d_ff": 56,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
WINDOWS = {
    **LLAMA,
    "model_type": "qwen3",
    "head_dim": 12,
    "use_sliding_window": True,
    "sliding_window": 7,
    "max_window_layers": 1,
}
LATENT = {
    **LLAMA,
    "model_type": "minicpm3",
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "scale_emb": 1.5,
    "dim_model_base": 60,
}
CONFIGS = [
    pytest.param(GPT2, id="gpt2"),
    pytest.param(LLAMA, id="llama"),
    pytest.param(WINDOWS, id="windows, head norms"),
    pytest.param(LATENT, id="latent attention"),
    pytest.param(T5, id="t5"),
    pytest.param({**T5, "attn_scale": True}, id="eva2"),
]
# float32, sums of at most 56 terms, three layers; logits are of the order of 5.
CLOSE = {"rtol": 0.0, "atol": 5e-5}


def _tokens(*shape: int, seed: int = 3) -> torch.Tensor:
    return torch.randint(0, 53, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("cuts", [[1] * 37, [36, 1], [5, 1, 1, 20, 10]], ids=str)
def test_step_by_step_equals_the_whole_at_once(
    config: Mapping[str, Any], cuts: list[int], random_model: Any
) -> None:
    model = random_model(load_architecture(config))
    token_ids = _tokens(2, 37)
    whole_cache, cache = model.new_cache(2, 40), model.new_cache(2, 40)
    if model.architecture.has_encoder:
        for each in (whole_cache, cache):
            model.encode(_tokens(2, 11), each)
    whole = model.run("decoder", token_ids, whole_cache)
    assert whole.std() > 1  # flat logits would let any mistake pass
    parts = [model.run("decoder", part, cache) for part in token_ids.split(cuts, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **CLOSE)
    assert cache.lengths == (37, 37)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("cuts", [[1] * 37, [5, 1, 1, 20, 10]], ids=str)
def test_an_int8_cache_filled_step_by_step_is_that_of_the_whole_at_once(
    config: Mapping[str, Any], cuts: list[int], random_model: Any
) -> None:
    """But for components that lie between two integers: they may go to either."""
    model = random_model(load_architecture(config))
    token_ids = _tokens(2, 37)
    caches = [model.new_cache(2, 40, 12 * model.architecture.has_encoder, "int8") for _ in "ab"]
    exact_cache = model.new_cache(2, 40)
    if model.architecture.has_encoder:
        for each in (*caches, exact_cache):
            model.encode(_tokens(2, 11), each)
    whole = model.run("decoder", token_ids, caches[0])
    parts = [model.run("decoder", part, caches[1]) for part in token_ids.split(cuts, dim=1)]
    stepped, exact = torch.cat(parts, dim=1), model.run("decoder", token_ids, exact_cache)
    rounding = (whole - exact).norm() / exact.norm()
    assert 1e-3 < rounding < 0.05
    assert (stepped - whole).norm() / whole.norm() < 0.5 * rounding
    predicted = model.architecture.cache_bytes(
        2, 40, 12 * model.architecture.has_encoder, torch.float32, "int8"
    )
    waiting_bytes = 4 * 2 * 12 * 40 * model.architecture.has_encoder
    assert caches[0].nbytes == predicted - waiting_bytes


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_a_pass_without_a_cache_equals_one_with(
    config: Mapping[str, Any], random_model: Any
) -> None:
    model = random_model(load_architecture(config))
    token_ids = _tokens(2, 48)
    with_cache = model.run("decoder", token_ids, model.new_cache(2, 48))
    torch.testing.assert_close(model.run("decoder", token_ids), with_cache, **CLOSE)


@pytest.mark.parametrize("config", CONFIGS)
def test_slots_of_unequal_length_equal_each_alone(
    config: Mapping[str, Any], random_model: Any
) -> None:
    model = random_model(load_architecture(config))
    lengths = torch.tensor([9, 1, 6])
    encoder_lengths = torch.tensor([2, 13, 7])
    prompt, steps, encoder_ids = _tokens(3, 9), _tokens(3, 5, seed=4), _tokens(3, 13, seed=5)
    cache = model.new_cache(3, 20)
    if model.architecture.has_encoder:
        model.encode(encoder_ids, cache, encoder_lengths)
    prefill = model.run("decoder", prompt, cache, lengths)
    decoded = [model.run("decoder", steps[:, i : i + 1], cache) for i in range(5)]
    assert cache.lengths == (14, 6, 11)
    for row in range(3):
        alone = model.new_cache(1, 20)
        if model.architecture.has_encoder:
            model.encode(encoder_ids[row : row + 1, : encoder_lengths[row]], alone)
        count = int(lengths[row])
        logits = model.run("decoder", prompt[row : row + 1, :count], alone)
        torch.testing.assert_close(prefill[row, :count], logits[0], **CLOSE)
        for i in range(5):
            logits = model.run("decoder", steps[row : row + 1, i : i + 1], alone)
            torch.testing.assert_close(decoded[i][row], logits[0], **CLOSE)


@pytest.mark.parametrize("config", CONFIGS)
def test_an_idle_slot_changes_nothing_and_stays_empty(
    config: Mapping[str, Any], random_model: Any
) -> None:
    model = random_model(load_architecture(config))
    cache, alone = model.new_cache(2, 12), model.new_cache(1, 12)
    if model.architecture.has_encoder:
        model.encode(_tokens(2, 6), cache, torch.tensor([6, 0]))
        model.encode(_tokens(2, 6)[:1], alone)
    token_ids = _tokens(2, 8)
    both = model.run("decoder", token_ids, cache, torch.tensor([8, 0]))
    assert torch.isfinite(both).all()
    assert cache.lengths == (8, 0)
    torch.testing.assert_close(both[0], model.run("decoder", token_ids[:1], alone)[0], **CLOSE)


def test_padding_does_not_change_what_the_encoder_gives(random_model: Any) -> None:
    model = random_model(load_architecture(T5))
    token_ids = _tokens(2, 30)
    padded = model.run("encoder", token_ids, None, torch.tensor([30, 17]))
    alone = model.run("encoder", token_ids[1:, :17])
    torch.testing.assert_close(padded[1, :17], alone[0], **CLOSE)


@pytest.mark.parametrize("config", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_padding_may_stand_behind_the_last_position(
    config: Mapping[str, Any], random_model: Any
) -> None:
    model = random_model(load_architecture(config))
    cache = model.new_cache(2, 48)
    prompt = _tokens(2, 44)
    model.run("decoder", prompt, cache)
    logits = model.run("decoder", _tokens(2, 8), cache, torch.tensor([4, 3]))
    assert torch.isfinite(logits).all()
    assert cache.lengths == (48, 47)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_used_and_reset_cache_is_as_good_as_a_new_one(
    config: Mapping[str, Any], random_model: Any
) -> None:
    model = random_model(load_architecture(config))
    used, new = model.new_cache(1, 16), model.new_cache(1, 16)
    if model.architecture.has_encoder:
        model.encode(_tokens(1, 15), used)
    model.run("decoder", _tokens(1, 16), used)
    used.reset()
    for cache in (used, new):
        if model.architecture.has_encoder:
            model.encode(_tokens(1, 4, seed=8), cache)
    again = model.run("decoder", _tokens(1, 5, seed=9), used)
    assert torch.equal(again, model.run("decoder", _tokens(1, 5, seed=9), new))


def test_a_new_encoder_output_replaces_the_keys_of_the_old_one(random_model: Any) -> None:
    model = random_model(load_architecture(T5))
    cache, fresh = model.new_cache(1, 8), model.new_cache(1, 8, max_encoder_tokens=20)
    for num_tokens in (3, 15, 6):
        cache.reset()
        fresh.reset()
        for each in (cache, fresh):
            model.encode(_tokens(1, num_tokens), each)
        logits = model.run("decoder", _tokens(1, 4), cache)
        assert torch.equal(logits, model.run("decoder", _tokens(1, 4), fresh))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_predicted_cache_size_is_the_real_one(
    config: Mapping[str, Any], random_model: Any
) -> None:
    model = random_model(load_architecture(config))
    encoder_tokens = 13 if model.architecture.has_encoder else 0
    cache = model.new_cache(2, 30, encoder_tokens)
    if encoder_tokens:
        model.encode(_tokens(2, encoder_tokens), cache)
    predicted = model.architecture.cache_bytes(2, 30, encoder_tokens, torch.float32)
    assert cache.nbytes == predicted
    model.run("decoder", _tokens(2, 3), cache)
    assert cache.nbytes == predicted - 2 * encoder_tokens * 40 * 4  # the encoder output is let go


@pytest.mark.parametrize("config", CONFIGS)
def test_half_precision_embeddings_and_linears_work_under_float32(
    config: Mapping[str, Any], random_model: Any
) -> None:
    half = random_model(load_architecture(config), dtype=torch.float16)
    mixed, wide = ({}, {})
    for spec in half.architecture.block_specs():
        weights = half.blocks[spec.name]
        wide[spec.name] = {name: weight.float() for name, weight in weights.items()}
        mixed[spec.name] = {
            tensor.name: weights[tensor.name].float()
            if tensor.kind == "other"
            else weights[tensor.name]
            for tensor in spec.tensors
        }
    results = []
    for blocks in (mixed, wide):
        model = type(half)(half.architecture, blocks)
        cache = model.new_cache(1, 8)
        if model.architecture.has_encoder:
            model.encode(_tokens(1, 6), cache)
        results.append(model.run("decoder", _tokens(1, 8), cache))
    torch.testing.assert_close(results[0], results[1], **CLOSE)


@pytest.mark.parametrize("config", CONFIGS)
def test_int8_steps_agree_with_an_int8_prefill(
    config: Mapping[str, Any], random_model: Any
) -> None:
    # Widths that divide by 16, so that single rows take the integer kernel.
    widths = {"n_embd": 80, "d_model": 48, "d_kv": 16, "d_ff": 80}
    widths |= {"hidden_size": 64, "intermediate_size": 96}
    own = {name: width for name, width in widths.items() if name in config}
    model = random_model(load_architecture({**config, **own}), quantize=True)
    token_ids = _tokens(1, 24)
    whole_cache, cache = model.new_cache(1, 24), model.new_cache(1, 24)
    if model.architecture.has_encoder:
        for each in (whole_cache, cache):
            model.encode(_tokens(1, 20), each)
    whole = model.run("decoder", token_ids, whole_cache)
    parts = [model.run("decoder", part, cache) for part in token_ids.split(1, dim=1)]
    # Single rows round activations and products to bfloat16 (2**-9), the prefill does not.
    error = (torch.cat(parts, dim=1) - whole).norm() / whole.norm()
    assert error < 0.02


@pytest.mark.parametrize("config", CONFIGS)
def test_block_specs_name_every_block_once_and_in_order(
    config: Mapping[str, Any],
) -> None:
    architecture = load_architecture(config)
    names = [spec.name for spec in architecture.block_specs()]
    encoder = [f"encoder.{i}" for i in range(architecture.num_blocks("encoder"))]
    decoder = [f"decoder.{i}" for i in range(architecture.num_blocks("decoder"))]
    assert names == [FIXED, *encoder, *decoder]
    files = [s.prefix + t.name for s in architecture.block_specs() for t in s.tensors]
    assert len(files) == len(set(files))
