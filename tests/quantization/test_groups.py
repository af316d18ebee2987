import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.quantization.formats import GROUP_SIZES, WeightFormat, parse_format
from martlet.quantization.nibbles import pack_nibbles, unpack_nibbles
from martlet.quantization.packing import group_unit, pack_groups, pack_nibble_tiles
from martlet.quantization.scheme import GroupedTensor, tiled

sizes = st.integers(1, 300)
formats = st.sampled_from(
    [
        *(WeightFormat(bits, size) for bits in (4, 8) for size in GROUP_SIZES),
        *(WeightFormat(4, size, has_zeros=True) for size in GROUP_SIZES),
    ]
)


def _weight(rows, columns, format, seed=0):
    random = torch.Generator().manual_seed(seed)
    num_groups = -(-columns // format.group_size)
    if format.bits == 4:
        values = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=random)
        data = pack_nibbles(values)
    else:
        data = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=random)
    scale = torch.randn(rows, num_groups, generator=random).half()
    zero = torch.rand(rows, num_groups, generator=random).mul(15).half()
    row_scale = torch.rand(rows, generator=random) + 0.5
    shape = torch.Size((rows, columns))
    return GroupedTensor(data, scale, row_scale, shape, format, zero if format.has_zeros else None)


@given(st.integers(1, 20), sizes)
def test_nibbles_come_back_as_they_went_in(rows, columns):
    values = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    packed = pack_nibbles(values)
    assert packed.shape == (rows, -(-columns // 2))
    assert torch.equal(unpack_nibbles(packed, columns), values)


def test_the_first_of_two_inputs_is_the_lower_half_of_a_byte():
    assert pack_nibbles(torch.tensor([[1, 2, 3]], dtype=torch.uint8)).tolist() == [[0x21, 0x03]]


@given(st.integers(1, 40), sizes, formats)
def test_tiles_of_groups_hold_the_same_weight(rows, columns, format):
    weight = _weight(rows, columns, format)
    tiles = tiled(weight)
    back = tiles.untiled()
    assert torch.equal(back.data, weight.data)
    assert torch.equal(back.scale, weight.scale)
    assert torch.equal(back.row_scale, weight.row_scale)
    if format.has_zeros:
        assert torch.equal(back.zero, weight.zero)
    assert torch.equal(tiles.dequantize(), weight.dequantize())


@given(st.integers(1, 40), sizes)
def test_every_nibble_lies_where_the_layout_says(rows, columns):
    values = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    packed = pack_nibble_tiles(pack_nibbles(values), columns).tolist()
    chunks = -(-columns // 64)
    place = [(0, 0), (0, 2), (1, 0), (1, 2), (0, 1), (0, 3), (1, 1), (1, 3)]
    for row, column in {(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)}:
        tile, h, g = row // 16, row % 16 // 8, row % 8
        chunk, k, q = column // 64, column % 64 // 32, column % 32 // 16
        c, e = column % 16 // 4, column % 4
        word = (tile * chunks + chunk) * 128 + (4 * g + c) * 4 + 2 * k + h
        nibble = place.index((q, e))
        byte = packed[4 * word + nibble // 2]
        assert byte >> 4 * (nibble % 2) & 15 == int(values[row, column])


@given(st.integers(1, 40), sizes, formats)
def test_every_scale_lies_where_the_layout_says(rows, columns, format):
    weight = _weight(rows, columns, format)
    table = pack_groups(weight.scale, weight.zero, columns, format)
    unit, kinds = group_unit(format), 2 if format.has_zeros else 1
    units, share = -(-columns // unit), unit // format.group_size
    for row, group in {(0, 0), (rows - 1, weight.scale.shape[1] - 1)}:
        tile, h, g = row // 16, row % 16 // 8, row % 8
        at = ((tile * units + group // share) * 8 + g) * share * 2 + group % share * 2 + h
        assert table[kinds * at] == weight.scale[row, group]
        if format.has_zeros:
            assert table[kinds * at + 1] == weight.zero[row, group]


def test_a_grouped_weight_is_what_its_definition_says():
    weight = _weight(3, 70, WeightFormat(4, 32, has_zeros=True))
    integers = unpack_nibbles(weight.data, 70)
    row, column = 2, 69
    group = column // 32
    expected = (float(integers[row, column]) - float(weight.zero[row, group])) * float(
        weight.scale[row, group] * weight.row_scale[row]
    )
    assert float(weight.dequantize()[row, column]) == pytest.approx(expected, rel=1e-6)
    assert weight.dequantize(torch.float16).dtype == torch.float16


@given(st.integers(2, 40), sizes, formats)
def test_rows_of_a_grouped_weight_are_rows_of_the_matrix(rows, columns, format):
    weight = _weight(rows, columns, format)
    dense = weight.dequantize()
    assert torch.equal(weight.rows(1, rows).dequantize(), dense[1:])
    picked = torch.tensor([rows - 1, 0, rows - 1])
    assert torch.equal(weight.picked(picked).dequantize(), dense[picked])


@given(formats)
def test_formats_are_found_by_their_names(format):
    assert parse_format(format.name) == format


def test_int4_without_a_group_size_has_groups_of_32():
    assert parse_format("int4") == WeightFormat(4, 32)
    assert parse_format("int8") == WeightFormat(8)


@pytest.mark.parametrize("name", ["int3", "int4-g16", "int8-asym", "int8-g32-asym", "INT4", ""])
def test_there_are_no_other_formats(name):
    assert parse_format(name) is None


def test_bytes_of_a_format_are_those_of_the_weight():
    for format in (WeightFormat(4, 32), WeightFormat(4, 128, has_zeros=True), WeightFormat(8, 64)):
        weight = _weight(5, 131, format)
        assert weight.nbytes == pytest.approx(format.nbytes(5, 131), abs=5)
