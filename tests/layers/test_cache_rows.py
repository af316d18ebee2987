import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from martlet.layers.kv_cache import KVCache, KVShape
from martlet.quantization.kv_form import KVForm
from martlet.quantization.vectors import parts_of, quantize_vectors

LIKE = torch.zeros(1)


def _cache(num_slots: int, max_encoder_tokens: int | None = None, form: KVForm = "none") -> KVCache:
    return KVCache(KVShape(2, num_slots, 3, 24, 40, max_encoder_tokens, 6, form), LIKE)


def _new(num_rows: int, num_tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(num_rows, 3, num_tokens, 24, generator=generator)
    return keys, -keys


@st.composite
def _passes(draw: st.DrawFn) -> list[dict[int, int]]:
    """For some passes: which slots take part, in which order, and how many tokens each reads."""
    slots = st.lists(st.integers(0, 4), min_size=1, unique=True)
    passes = []
    for _ in range(draw(st.integers(1, 6))):
        chosen = draw(slots)
        same = draw(st.one_of(st.none(), st.integers(1, 4)))
        passes.append({slot: same or draw(st.integers(0, 4)) for slot in chosen})
    return passes


@settings(max_examples=80)
@given(_passes())
def test_rows_write_into_their_slots_and_no_others(passes: list[dict[int, int]]) -> None:
    cache = _cache(5)
    expected = [torch.zeros(3, 0, 24) for _ in range(5)]
    for seed, counts_of in enumerate(passes):
        rows, counts = cache.rows(list(counts_of)), list(counts_of.values())
        keys, values = _new(len(counts), max(*counts, 1), seed)
        for row, (slot, count) in enumerate(counts_of.items()):
            expected[slot] = torch.cat([expected[slot], keys[row, :, :count]], dim=1)
        for layer in range(2):
            got_keys, got_values = rows.append(layer, keys, values, counts)
            for row, slot in enumerate(counts_of):
                num_tokens = expected[slot].shape[1]
                assert torch.equal(got_keys[row, :, :num_tokens], expected[slot])
                assert torch.equal(got_values[row, :, :num_tokens], -expected[slot])
                own_keys, own_values = rows.row(layer, row, num_tokens)
                assert torch.equal(own_keys[0], expected[slot])
                assert torch.equal(own_values[0], -expected[slot])
        rows.advance(counts)
        assert cache.lengths == tuple(want.shape[1] for want in expected)
    for slot, want in enumerate(expected):
        assert torch.equal(cache.row(0, slot, want.shape[1])[0][0], want)


def test_neighbouring_slots_are_read_where_they_lie() -> None:
    cache = _cache(4)
    in_place, _ = cache.rows([1, 2]).append(0, *_new(2, 3, 0), [3, 3])
    copied, _ = cache.rows([0, 2]).append(0, *_new(2, 3, 1), [3, 3])
    base = cache._memory.self_attention.untyped_storage().data_ptr()
    assert in_place.untyped_storage().data_ptr() == base
    assert copied.untyped_storage().data_ptr() != base


def test_an_encoder_output_is_for_its_own_rows() -> None:
    cache = _cache(3, 9)

    def project(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        keys = hidden.sum(-1)[:, None, :, None].expand(-1, 3, -1, 24)
        return keys, -keys

    first = torch.randn(2, 9, 6)
    rows = cache.rows([2, 0])
    rows.set_encoder_output(first, [9, 4])
    assert rows.awaits_encoder_output
    for layer in range(2):
        assert rows.encoder_keys_values(layer, project)[0].shape == (2, 3, 9, 24)
    assert not rows.awaits_encoder_output
    second = torch.randn(1, 5, 6)
    other = cache.rows([1])
    other.set_encoder_output(second, [5])
    for layer in range(2):
        other.hold_encoder_output(layer, project)
    assert cache.encoder_lengths == (4, 5, 9)
    expected = {2: first[:1, :9], 0: first[1:, :4], 1: second}
    everyone = cache.rows([0, 1, 2])
    assert everyone.num_encoder_tokens == 9
    for slot, hidden in expected.items():
        keys, values = everyone.encoder_row(1, slot, hidden.shape[1])
        assert torch.equal(keys, project(hidden)[0])
        assert torch.equal(values, project(hidden)[1])


def test_rows_have_no_room_but_that_of_their_cache() -> None:
    cache = _cache(2, 0)
    with pytest.raises(AssertionError, match="without room"):
        cache.rows([0]).set_encoder_output(torch.zeros(1, 3, 6), [3])


def test_rows_of_an_int8_cache_write_into_their_slots_and_no_others() -> None:
    cache = _cache(4, 9, "int8")
    for slots, counts in (([3, 1], [5, 2]), ([0, 1, 2, 3], [3, 3, 1, 3]), ([2, 0], [1, 1])):
        rows = cache.rows(slots)
        before = [part.clone() for part in parts_of(cache._memory.self_attention)]
        keys, values = _new(len(slots), max(counts), sum(slots))
        starts = rows.lengths
        rows.append(1, keys, values, counts)
        rows.advance(counts)
        fresh = quantize_vectors(torch.stack((keys, values)))
        for part, new, want in zip(
            parts_of(cache._memory.self_attention), parts_of(fresh), before, strict=True
        ):
            for row, (slot, start, count) in enumerate(zip(slots, starts, counts, strict=True)):
                want[:, 1, slot, :, start : start + count] = new[:, row, :, :count]
            assert torch.equal(part, want)


def test_a_wiped_slot_of_an_int8_cache_holds_zeros() -> None:
    cache = _cache(3, 4, "int8")
    keys, values = _new(3, 5, 0)
    keys[1] = torch.nan
    cache.append(0, keys, values, [5, 5, 5])
    cache.advance([5, 5, 5])
    assert cache._memory.self_attention.scale.isnan().any()
    cache.wipe(1)
    assert cache.lengths == (5, 0, 5)
    assert not any(part.any() for part in parts_of(cache.row(0, 1, 24)[0]))
    assert torch.equal(cache.row(0, 2, 5)[0].data[0], quantize_vectors(keys[2]).data)


def test_a_wiped_slot_holds_zeros_and_its_neighbours_what_they_did() -> None:
    cache = _cache(3, 4)
    keys, values = _new(3, 5, 0)
    keys[1] = torch.nan
    cache.append(0, keys, values, [5, 5, 5])
    cache.advance([5, 5, 5])
    cache.wipe(1)
    assert cache.lengths == (5, 0, 5)
    assert not cache.row(0, 1, 24)[0].any()
    assert torch.equal(cache.row(0, 2, 5)[0], keys[2:])
