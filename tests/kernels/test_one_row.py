"""How products of one row are launched, for cards that are not here."""

from hypothesis import given
from hypothesis import strategies as st

from martlet.kernels.cuda import one_row
from martlet.kernels.cuda.driver import DeviceLimits
from martlet.quantization.formats import INT8, WeightFormat
from martlet.quantization.packing import tile_columns

KIB = 1 << 10
CARDS = {
    "A100": DeviceLimits(108, 163 * KIB, 164 * KIB, (8, 0)),
    "RTX 3060": DeviceLimits(28, 99 * KIB, 100 * KIB, (8, 6)),
    "H200": DeviceLimits(132, 227 * KIB, 228 * KIB, (9, 0)),
}


@given(
    st.sampled_from(sorted(CARDS)),
    st.integers(1, 4096).map(lambda eights: 8 * eights),
    st.lists(st.integers(1, 2000), min_size=1, max_size=3).map(tuple),
    st.booleans(),
    st.sampled_from([INT8, WeightFormat(8, 128), WeightFormat(4, 32, has_zeros=True)]),
)
def test_every_product_has_a_launch_that_the_card_can_hold(
    card, in_features, tiles, is_gated, format
):
    limits = CARDS[card]
    tiles = tiles[:1] if is_gated else tiles
    shape = one_row._shape(one_row._Size(in_features, tiles, is_gated, format), limits)
    assert shape.shared_bytes <= limits.shared_bytes_per_block_optin
    assert 1 <= shape.grid <= min(sum(tiles), limits.num_multiprocessors * shape.form.blocks)
    # All inputs belong to a warp, and loads go round whole turns.
    warp_inputs = shape.chunks * tile_columns(format.bits)
    assert shape.form.warps * warp_inputs >= in_features
    assert shape.chunks % shape.form.depth == 0
    num_chunks = -(-in_features // tile_columns(format.bits))
    assert shape.is_ragged == (shape.form.warps * shape.chunks != num_chunks)


def test_only_cards_with_the_registers_take_it_and_only_so_many_inputs():
    assert one_row.can_run((8, 0), 4096)
    assert not one_row.can_run((7, 5), 4096)
    assert not one_row.can_run((9, 0), 65536)
