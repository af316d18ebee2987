from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from martlet.layers.kv_cache import KVCache, KVShape
from martlet.quantization.kv_form import KV_FORMS, KVForm
from martlet.quantization.vectors import KeysValues, parts_of, quantize_vectors

LIKE = torch.zeros(1)


def _cache(
    num_slots: int,
    max_tokens: int,
    max_encoder_tokens: int | None = None,
    form: KVForm = "none",
) -> KVCache:
    return KVCache(KVShape(2, num_slots, 3, 4, max_tokens, max_encoder_tokens, 6, form), LIKE)


def _is_same(kept: KeysValues, x: Tensor) -> bool:
    """Whether a cache has kept x, in its own form."""
    if isinstance(kept, Tensor):
        return torch.equal(kept, x)
    expected = quantize_vectors(x)
    return torch.equal(kept.data, expected.data) and torch.equal(kept.scale, expected.scale)


def _new(num_slots: int, num_tokens: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(num_slots, 3, num_tokens, 4, generator=generator)
    return keys, -keys


@st.composite
def _passes(draw: st.DrawFn) -> list[list[int]]:
    """Counts of each slot for a few passes, equal or not, with idle slots."""
    num_slots = draw(st.integers(1, 3))
    one_pass = st.one_of(
        st.integers(1, 4).map(lambda count: [count] * num_slots),
        st.lists(st.integers(0, 4), min_size=num_slots, max_size=num_slots),
    )
    return draw(st.lists(one_pass, min_size=1, max_size=6))


@pytest.mark.parametrize("form", KV_FORMS)
@settings(max_examples=60, deadline=None)
@given(_passes())
def test_the_cache_holds_what_was_appended_slot_by_slot(
    form: KVForm, passes: list[Sequence[int]]
) -> None:
    num_slots = len(passes[0])
    cache = _cache(num_slots, 24, form=form)
    expected = [torch.zeros(3, 0, 4) for _ in range(num_slots)]
    for seed, counts in enumerate(passes):
        keys, values = _new(num_slots, max(*counts, 1), seed)
        for slot, count in enumerate(counts):
            expected[slot] = torch.cat([expected[slot], keys[slot, :, :count]], dim=1)
        for layer in range(2):
            got_keys, got_values = cache.append(layer, (layer + 1) * keys, values, counts)
            for slot, want in enumerate(expected):
                num_tokens = want.shape[1]
                assert _is_same(got_keys[slot, :, :num_tokens], (layer + 1) * want)
                assert _is_same(got_values[slot, :, :num_tokens], -want)
            assert all(torch.isfinite(part).all() for part in parts_of(got_keys))
        cache.advance(counts)
        assert cache.lengths == tuple(want.shape[1] for want in expected)


def test_a_pass_that_did_not_finish_leaves_no_trace() -> None:
    cache = _cache(1, 8)
    cache.append(0, *_new(1, 3, 0), [3])
    assert cache.lengths == (0,)
    keys, values = _new(1, 2, 1)
    got, _ = cache.append(0, keys, values, [2])
    assert torch.equal(got, keys)


def test_one_token_too_many_is_our_own_mistake() -> None:
    cache = _cache(2, 5)
    cache.append(0, *_new(2, 5, 0), [5, 4])
    cache.advance([5, 4])
    with pytest.raises(AssertionError, match="6 tokens do not fit into 5"):
        cache.append(0, *_new(2, 1, 0), [1, 1])
    cache.append(0, *_new(2, 1, 0), [0, 1])


def test_a_truncated_slot_is_written_over() -> None:
    cache = _cache(2, 5)
    cache.append(0, *_new(2, 5, 0), [5, 5])
    cache.advance([5, 5])
    cache.truncate(1, 2)
    keys, values = _new(2, 1, 1)
    got, _ = cache.append(0, keys, values, [0, 1])
    assert torch.equal(got[1, :, 2], keys[1, :, 0])
    assert torch.equal(got[0, :, :5], _new(2, 5, 0)[0][0])


@pytest.mark.parametrize("form", KV_FORMS)
def test_encoder_keys_are_made_once_a_layer_and_request(form: KVForm) -> None:
    cache = _cache(1, 4, 0, form)
    calls: list[int] = []

    def project(hidden: Tensor) -> tuple[Tensor, Tensor]:
        keys = hidden.sum(-1)[:, None, :, None].expand(1, 3, hidden.shape[1], 4)
        return keys, -keys

    def counted(hidden: Tensor) -> tuple[Tensor, Tensor]:
        calls.append(hidden.shape[1])
        return project(hidden)

    for num_tokens in (5, 9, 2):
        hidden = torch.randn(1, num_tokens, 6)
        cache.set_encoder_output(hidden, [num_tokens])
        for layer in (0, 1, 0, 1):
            keys, values = cache.encoder_keys_values(layer, counted)
            assert keys.shape == (1, 3, num_tokens, 4)
            assert _is_same(keys, project(hidden)[0])
            assert _is_same(values, project(hidden)[1])
    assert calls == [5, 5, 9, 9, 2, 2]


def test_a_cache_for_a_fixed_encoder_length_never_grows() -> None:
    cache = _cache(2, 4, 7)
    full = cache.nbytes
    assert full == 2 * 2 * 2 * 3 * (4 + 7) * 4 * 4
    cache.set_encoder_output(torch.zeros(2, 7, 6), torch.tensor([7, 3]))
    assert cache.nbytes == full + 2 * 7 * 6 * 4 == cache.shape.nbytes(torch.float32)
    assert cache.encoder_lengths == (7, 3)
    with pytest.raises(AssertionError, match="8 encoder tokens do not fit into 7"):
        cache.set_encoder_output(torch.zeros(2, 8, 6), [8, 8])


def test_an_int8_cache_has_a_byte_for_a_component_and_two_for_a_vector() -> None:
    cache = _cache(2, 4, 7, "int8")
    full = cache.nbytes
    assert full == 2 * 2 * 2 * 3 * (4 + 7) * (4 + 2)
    cache.set_encoder_output(torch.zeros(2, 7, 6), [7, 3])
    # What the encoder has put out waits as floats.
    assert cache.nbytes == full + 2 * 7 * 6 * 4 == cache.shape.nbytes(torch.float32)


def test_a_decoder_only_cache_takes_no_encoder_output() -> None:
    with pytest.raises(AssertionError, match="no encoder"):
        _cache(1, 4).set_encoder_output(torch.zeros(1, 2, 6), [2])
