"""How products of few rows are launched, for cards that are not here."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.kernels.cuda import few_rows
from martlet.kernels.cuda.driver import DeviceLimits
from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.packing import tile_columns

KIB = 1 << 10
CARDS = {
    "GTX 1060": DeviceLimits(10, 48 * KIB, 96 * KIB, (6, 1)),
    "RTX 2060": DeviceLimits(30, 64 * KIB, 64 * KIB, (7, 5)),
    "RTX 3060": DeviceLimits(28, 99 * KIB, 100 * KIB, (8, 6)),
    "H200": DeviceLimits(132, 227 * KIB, 228 * KIB, (9, 0)),
}
cards = st.sampled_from(sorted(CARDS))
formats = st.sampled_from(
    [INT8, WeightFormat(8, 32), WeightFormat(4, 32), WeightFormat(4, 32, has_zeros=True)]
)


@given(cards, st.integers(1, 448), st.integers(1, few_rows.MAX_ROWS), st.booleans(), formats)
def test_every_product_has_a_launch_that_the_card_can_hold(
    card, num_chunks, rows, is_gated, format
):
    limits = CARDS[card]
    has_units = few_rows.uses_matrix_units(limits.capability)
    kind = few_rows._Kind(is_gated, has_units, format)
    shape = few_rows._shape(num_chunks, rows, kind, limits)
    assert shape.shared_bytes <= limits.shared_bytes_per_block_optin
    blocks = shape.blocks_per_multiprocessor
    assert blocks >= 1
    assert blocks * shape.shared_bytes <= limits.shared_bytes_per_multiprocessor
    assert 1 <= shape.rows <= min(rows, shape.max_rows)
    # A tile is a whole number of steps, or the kernel is told that it is not.
    step_chunks = shape.warps * few_rows._BATCH
    assert shape.is_ragged == (num_chunks % step_chunks != 0)
    assert shape.stages % few_rows._BATCH == 0


@pytest.mark.parametrize("card", CARDS)
def test_one_row_of_an_11b_model_takes_one_launch_on_every_card(card):
    limits = CARDS[card]
    has_units = few_rows.uses_matrix_units(limits.capability)
    for in_features in (4096, 10240):
        for format in (INT8, WeightFormat(4, 32, has_zeros=True)):
            kind = few_rows._Kind(False, has_units, format)
            chunks = in_features // tile_columns(format.bits)
            assert few_rows._shape(chunks, 1, kind, limits).rows == 1


def test_cards_without_matrix_units_for_float16_use_int8_activations():
    assert not few_rows.uses_matrix_units((6, 1))
    assert not few_rows.uses_matrix_units((7, 0))
    assert few_rows.uses_matrix_units((7, 5))
    assert not few_rows.uses_matrix_units((9, 0), is_forced_off=True)
