import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.quantization.packing import pack_tiles, padded_shape, tile_rows_of, unpack_tiles
from martlet.quantization.scheme import QuantizedTensor, tiled

sizes = st.integers(1, 70)


def _matrix(rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (rows, columns)
    return torch.randint(-128, 128, shape, dtype=torch.int8, generator=generator)


@given(sizes, sizes)
def test_unpacking_gives_back_what_was_packed(rows, columns):
    data = _matrix(rows, columns)
    assert torch.equal(unpack_tiles(pack_tiles(data), rows, columns), data)


@given(sizes, sizes)
def test_every_weight_lies_where_the_layout_says(rows, columns):
    data = _matrix(rows, columns)
    packed = pack_tiles(data).tolist()
    _, padded_columns = padded_shape(rows, columns)
    for row, column in {(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)}:
        tile, h, g = row // 16, row % 16 // 8, row % 8
        chunk, q, c, e = column // 32, column % 32 // 16, column % 16 // 4, column % 4
        lane = 4 * g + c
        at = (tile * (padded_columns // 32) + chunk) * 512 + 16 * lane + 8 * q + 4 * h + e
        assert packed[at] == int(data[row, column]) + 128


def test_padding_is_a_weight_of_zero():
    packed = pack_tiles(_matrix(17, 33))
    whole = unpack_tiles(packed, 32, 64)
    assert not whole[17:].any()
    assert not whole[:, 33:].any()


@given(sizes, sizes)
def test_rows_can_be_picked_from_the_tiles(rows, columns):
    data = _matrix(rows, columns)
    wanted = torch.tensor([[0, rows - 1], [rows // 2, 0]])
    assert torch.equal(tile_rows_of(pack_tiles(data), wanted, columns), data[wanted])


def test_packing_into_given_memory_fills_all_of_it():
    data = _matrix(40, 100)
    out = torch.zeros(48 * 128, dtype=torch.uint8)
    pack_tiles(data, out)
    assert torch.equal(out, pack_tiles(data))


def test_a_tiled_weight_stands_for_the_same_numbers():
    weight = QuantizedTensor(_matrix(21, 70), torch.rand(21))
    again = tiled(weight)
    assert again.shape == weight.shape
    assert again.scale.shape == (32,)
    assert again.nbytes == 32 * 96 + 4 * 32
    assert torch.equal(again.dequantize(), weight.dequantize())
