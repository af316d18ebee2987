import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.memory.layout import TensorForm, lay_out_part, view_entry, view_part
from martlet.memory.parts import ALIGNMENT_BYTES
from martlet.quantization.packing import unpack_tiles
from martlet.quantization.scheme import QuantizedTensor, TiledTensor, tiled

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
side = st.integers(1, 70)  # up to five tiles of rows, three of columns, most of them padded


@st.composite
def forms(draw):
    """Tensors of a part in any mixture; matrices may be integers, vectors and tables not."""
    tensors = []
    for number in range(draw(st.integers(1, 6))):
        shape = draw(st.one_of(st.tuples(side), st.tuples(side, side)))
        is_int8 = len(shape) == 2 and draw(st.booleans())
        tensors.append(TensorForm(f"tensor{number}", shape, is_int8))
    return tensors


def byte_ranges(layout):
    """(start, stop) of every run of bytes of a part, from its start on."""
    ranges = []
    for entry in layout.entries:
        ranges.append((entry.offset, entry.offset + entry.nbytes))
        if entry.is_tiled:
            rows = -(-entry.shape[0] // 16) * 16
            ranges.append((entry.scale_offset, entry.scale_offset + 4 * rows))
    return sorted(ranges)


@given(forms(), st.sampled_from(DTYPES))
def test_no_two_tensors_of_a_part_share_a_byte_and_none_leaves_it(tensors, dtype):
    layout = lay_out_part("decoder.0", "decoder.0", tensors, dtype)
    ranges = byte_ranges(layout)
    ends = [0, *(stop for _, stop in ranges)]
    starts = [*(start for start, _ in ranges), layout.nbytes]
    assert all(end <= start for end, start in zip(ends, starts, strict=True))


@given(forms(), st.sampled_from(DTYPES))
def test_every_tensor_and_the_part_itself_end_at_an_alignment(tensors, dtype):
    layout = lay_out_part("decoder.0", "decoder.0", tensors, dtype)
    assert all(start % ALIGNMENT_BYTES == 0 for start, _ in byte_ranges(layout))
    assert layout.nbytes % ALIGNMENT_BYTES == 0
    padding_bytes = layout.nbytes - sum(stop - start for start, stop in byte_ranges(layout))
    assert padding_bytes < ALIGNMENT_BYTES * len(byte_ranges(layout))


@given(forms(), st.sampled_from(DTYPES), st.integers(0, 3), st.integers(0, 1 << 32))
def test_what_is_written_into_the_views_of_a_part_is_read_back(tensors, dtype, spare, seed):
    random = torch.Generator().manual_seed(seed)
    layout = lay_out_part("decoder.0", "decoder.0", tensors, dtype)
    # A slot is as large as the largest part that passes through it.
    memory = torch.randint(0, 256, (layout.nbytes + spare,), dtype=torch.uint8, generator=random)
    written = {}
    for form in tensors:
        if form.is_int8:
            data = torch.randint(-127, 128, form.shape, dtype=torch.int8, generator=random)
            written[form.name] = QuantizedTensor(data, torch.rand(form.shape[0], generator=random))
        else:
            written[form.name] = torch.randn(form.shape, generator=random).to(dtype)
    for name, weight in view_part(layout, memory).items():
        if isinstance(weight, TiledTensor):
            source = tiled(written[name])
            weight.data.copy_(source.data)
            weight.scale.copy_(source.scale)
        else:
            weight.copy_(written[name])
    views = view_part(layout, memory)
    assert list(views) == [form.name for form in tensors]
    for name, weight in views.items():
        assert tuple(weight.shape) == tuple(written[name].shape)
        if isinstance(weight, TiledTensor):
            plain = weight.untiled()
            assert torch.equal(plain.data, written[name].data)
            assert torch.equal(plain.scale, written[name].scale)
        else:
            assert weight.dtype == dtype
            assert torch.equal(weight, written[name])


def test_a_matrix_of_integers_takes_whole_tiles_and_a_scale_for_each_of_their_rows():
    forms = [TensorForm("odd", (17, 33), is_int8=True), TensorForm("norm", (3,), is_int8=False)]
    odd, norm = lay_out_part("fixed", "fixed", forms, torch.float16).entries
    assert (odd.is_tiled, odd.offset, odd.nbytes) == (True, 0, 32 * 64)
    assert odd.scale_offset == 2048
    assert (norm.is_tiled, norm.offset, norm.nbytes) == (False, 2048 + 256, 6)


def test_a_view_is_the_memory_of_the_part_itself():
    forms = [TensorForm("w", (16, 32), is_int8=True), TensorForm("b", (4,), is_int8=False)]
    layout = lay_out_part("fixed", "fixed", forms, torch.float32)
    memory = torch.zeros(layout.nbytes, dtype=torch.uint8)
    w, b = (view_entry(entry, memory) for entry in layout.entries)
    memory[layout.entries[0].offset] = 255
    memory[layout.entries[1].offset : layout.nbytes] = 1
    assert unpack_tiles(w.data, 16, 32)[0, 0] == 127
    assert b[0] != 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_integer_takes_the_type_of_the_activations(dtype):
    forms = [TensorForm("table", (5, 7), is_int8=False)]
    layout = lay_out_part("decoder.1.once", "decoder.1", forms, dtype)
    (entry,) = layout.entries
    assert (layout.name, layout.block) == ("decoder.1.once", "decoder.1")
    assert (entry.dtype, entry.nbytes) == (dtype, math.prod((5, 7)) * dtype.itemsize)
