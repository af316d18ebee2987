"""How products of several rows are launched, for cards that are not here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.kernels.cuda import several_rows
from martlet.kernels.cuda.driver import DeviceLimits
from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.packing import tile_columns

KIB = 1 << 10
CARDS = {
    "A100": DeviceLimits(108, 163 * KIB, 164 * KIB, (8, 0)),
    "RTX 3060": DeviceLimits(28, 99 * KIB, 100 * KIB, (8, 6)),
    "H200": DeviceLimits(132, 227 * KIB, 228 * KIB, (9, 0)),
    "RTX 5090": DeviceLimits(170, 99 * KIB, 100 * KIB, (12, 0)),
}
H200 = CARDS["H200"]


def _size(in_features, rows, tiles, is_gated, format=INT8):
    return several_rows._Size(in_features, rows, tiles, is_gated, format)


@given(
    st.sampled_from(sorted(CARDS)),
    st.integers(1, 4096).map(lambda eights: 8 * eights),
    st.integers(1, 16),
    st.lists(st.integers(1, 2000), min_size=1, max_size=3).map(tuple),
    st.booleans(),
    st.sampled_from([INT8, WeightFormat(8, 128), WeightFormat(4, 32, has_zeros=True)]),
)
def test_every_product_has_a_launch_that_the_card_can_hold(
    card, in_features, rows, tiles, is_gated, format
):
    limits = CARDS[card]
    tiles = tiles[:1] if is_gated else tiles
    shape = several_rows._shape(_size(in_features, rows, tiles, is_gated, format), limits)
    assert shape.shared_bytes <= limits.shared_bytes_per_block_optin
    assert shape.max_rows - 8 < rows <= shape.max_rows
    # A block without a tile would wait for nothing; a tile is a whole number of steps.
    assert 1 <= shape.grid <= min(limits.num_multiprocessors, sum(tiles))
    assert shape.stages % several_rows._BATCH == 0
    # The kernel finds its threads in a turn by masking.
    assert shape.warps & (shape.warps - 1) == 0
    step_inputs = tile_columns(format.bits) * several_rows._BATCH * shape.warps
    assert shape.is_ragged == (in_features % step_inputs != 0)


@pytest.mark.parametrize("rows", [2, 8, 16])
def test_inputs_stay_where_many_tiles_share_them_and_are_streamed_where_one_pair_does(rows):
    assert not several_rows._shape(_size(4096, rows, (256,) * 3, False), H200).is_streamed
    assert not several_rows._shape(_size(4096, rows, (640,), True), H200).is_streamed
    for in_features in (4096, 10240):
        shape = several_rows._shape(_size(in_features, rows, (256,), False), H200)
        assert shape.is_streamed
        assert shape.grid == 128
    # One tile a block: halving the number of blocks would leave multiprocessors without work.
    assert not several_rows._shape(_size(2048, rows, (128,), False), H200).is_streamed


def test_inputs_that_do_not_fit_are_streamed():
    assert several_rows._shape(_size(28672, 16, (1000,), False), H200).is_streamed
    assert several_rows._shape(_size(8192, 16, (1000,), True), H200).is_streamed
    assert several_rows._shape(_size(8192, 16, (1000,), True), H200).grid == 132


def test_cards_without_asynchronous_copies_are_left_to_the_kernel_of_a_few_rows():
    assert not several_rows.can_run((7, 5))
    assert several_rows.can_run((8, 0))
