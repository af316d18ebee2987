import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.memory.layout import TensorForm, lay_out_part, view_entry, view_part
from martlet.memory.parts import ALIGNMENT_BYTES
from martlet.quantization.formats import GROUP_SIZES, INT8, WeightFormat
from martlet.quantization.packing import unpack_tiles
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor, TiledTensor, tiled

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
FORMATS = (
    INT8,
    *(WeightFormat(8, size) for size in GROUP_SIZES),
    *(WeightFormat(4, size, has_zeros) for size in GROUP_SIZES for has_zeros in (False, True)),
)
# Up to five tiles of rows, five of columns and five groups, most of them padded.
side = st.integers(1, 140)


@st.composite
def forms(draw):
    """Tensors of a part in any mixture; matrices may be integers, vectors and tables not."""
    tensors = []
    for number in range(draw(st.integers(1, 6))):
        shape = draw(st.one_of(st.tuples(side), st.tuples(side, side)))
        format = draw(st.sampled_from((None, *FORMATS))) if len(shape) == 2 else None
        tensors.append(TensorForm(f"tensor{number}", shape, format))
    return tensors


def byte_ranges(layout):
    """(start, stop) of every run of bytes of a part, from its start on."""
    ranges = []
    for entry in layout.entries:
        ranges.append((entry.offset, entry.offset + entry.nbytes))
        if entry.is_tiled:
            rows = -(-entry.shape[0] // 16) * 16
            ranges.append((entry.scale_offset, entry.scale_offset + 4 * rows))
            group_size = entry.format.group_size
            if group_size:
                # Tables go by whole tiles, which may have two groups, or groups of several tiles.
                unit = max(group_size, 64 if entry.format.bits == 4 else 32)
                units = -(-entry.shape[1] // unit)
                one = 4 if entry.format.has_zeros else 2
                nbytes = rows * units * (unit // group_size) * one
                ranges.append((entry.groups_offset, entry.groups_offset + nbytes))
    return sorted(ranges)


def random_weight(form, dtype, random):
    """A plain weight of that form; floats of any bits where there are floats."""
    rows, columns = form.shape if len(form.shape) == 2 else (1, 1)
    if form.format is None:
        return torch.randn(form.shape, generator=random).to(dtype)
    data = torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=random)
    row_scale = torch.rand(rows, generator=random)
    if form.format.group_size is None:
        return QuantizedTensor(data, row_scale)
    if form.format.bits == 4:
        data = torch.randint(0, 256, (rows, -(-columns // 2)), dtype=torch.uint8, generator=random)
        if columns % 2:
            data[:, -1] &= 15
    groups = (rows, -(-columns // form.format.group_size))
    scale = torch.randn(groups, generator=random).half()
    zero = torch.rand(groups, generator=random).half() if form.format.has_zeros else None
    return GroupedTensor(data, scale, row_scale, torch.Size(form.shape), form.format, zero)


def numbers_of(weight):
    """The tensors that a weight consists of."""
    if isinstance(weight, torch.Tensor):
        return [weight]
    if isinstance(weight, QuantizedTensor):
        return [weight.data, weight.scale]
    if isinstance(weight, GroupedTensor):
        zero = [] if weight.zero is None else [weight.zero]
        return [weight.data, weight.scale, weight.row_scale, *zero]
    return [weight.data, weight.scale, *([] if weight.groups is None else [weight.groups])]


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
        written[form.name] = random_weight(form, dtype, random)
    for name, weight in view_part(layout, memory).items():
        source = tiled(written[name]) if isinstance(weight, TiledTensor) else written[name]
        for mine, theirs in zip(numbers_of(weight), numbers_of(source), strict=True):
            mine.copy_(theirs)
    views = view_part(layout, memory)
    assert list(views) == [form.name for form in tensors]
    for name, weight in views.items():
        assert tuple(weight.shape) == tuple(written[name].shape)
        if isinstance(weight, TiledTensor):
            plain = weight.untiled()
            assert plain.format == written[name].format
        else:
            plain = weight
            assert weight.dtype == dtype
        for mine, theirs in zip(numbers_of(plain), numbers_of(written[name]), strict=True):
            assert torch.equal(mine, theirs)


def test_a_matrix_of_integers_takes_whole_tiles_and_a_scale_for_each_of_their_rows():
    forms = [TensorForm("odd", (17, 33), INT8), TensorForm("norm", (3,), None)]
    odd, norm = lay_out_part("fixed", "fixed", forms, torch.float16).entries
    assert (odd.is_tiled, odd.offset, odd.nbytes) == (True, 0, 32 * 64)
    assert odd.scale_offset == 2048
    assert (norm.is_tiled, norm.offset, norm.nbytes) == (False, 2048 + 256, 6)


def test_scales_of_groups_lie_behind_those_of_rows():
    forms = [
        TensorForm("odd", (17, 65), WeightFormat(4, 32)),
        TensorForm("zeros", (16, 64), WeightFormat(4, 128, has_zeros=True)),
        TensorForm("bytes", (16, 32), WeightFormat(8, 64)),
        TensorForm("norm", (3,), None),
    ]
    layout = lay_out_part("fixed", "fixed", forms, torch.float16)
    odd, zeros, wide, norm = layout.entries
    assert (odd.offset, odd.nbytes) == (0, 32 * 128 // 2)
    assert (odd.scale_offset, odd.groups_offset) == (2048, 2048 + 256)
    assert odd.groups_nbytes == 32 * 4 * 2  # four groups of 32 in two tiles
    assert (zeros.offset, zeros.nbytes) == (2048 + 256 + 256, 16 * 64 // 2)
    assert zeros.groups_nbytes == 16 * 2 * 2  # a scale and a zero for the one group of a row
    assert (wide.offset, wide.nbytes, wide.groups_nbytes) == (2560 + 512 + 512, 512, 16 * 2)
    assert (norm.offset, norm.groups_nbytes) == (3584 + 512 + 512, 0)
    assert layout.nbytes == 4608 + 256


def test_a_view_is_the_memory_of_the_part_itself():
    forms = [TensorForm("w", (16, 32), INT8), TensorForm("b", (4,), None)]
    layout = lay_out_part("fixed", "fixed", forms, torch.float32)
    memory = torch.zeros(layout.nbytes, dtype=torch.uint8)
    w, b = (view_entry(entry, memory) for entry in layout.entries)
    memory[layout.entries[0].offset] = 255
    memory[layout.entries[1].offset : layout.nbytes] = 1
    assert unpack_tiles(w.data, 16, 32)[0, 0] == 127
    assert b[0] != 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_no_integer_takes_the_type_of_the_activations(dtype):
    forms = [TensorForm("table", (5, 7), None)]
    layout = lay_out_part("decoder.1.once", "decoder.1", forms, dtype)
    (entry,) = layout.entries
    assert (layout.name, layout.block) == ("decoder.1.once", "decoder.1")
    assert (entry.dtype, entry.nbytes) == (dtype, math.prod((5, 7)) * dtype.itemsize)
