"""Several tensors of ours in one matrix of a checkpoint."""

import pytest
import torch

from martlet.compression.groups import quantize_groups
from martlet.conversion.cutting import cut, cut_shape
from martlet.errors import ModelFileError
from martlet.models.architecture import CheckpointTensor
from martlet.quantization.formats import INT4, WeightFormat

NAMES = ("fused.weight",)
# Of 24 rows: all, the second of three thirds, the last 8, and of each head of 6 rows the second
# pair; as GPT-NeoX and BLOOM keep queries, keys and values head by head.
PLACES = [
    (CheckpointTensor(NAMES), list(range(24))),
    (CheckpointTensor(NAMES, None, 8, 8), list(range(8, 16))),
    (CheckpointTensor(NAMES, None, 16), list(range(16, 24))),
    (CheckpointTensor(NAMES, 6, 2, 2), [r for r in range(24) if r % 6 in (2, 3)]),
    (CheckpointTensor(NAMES, 12, 6), [*range(6, 12), *range(18, 24)]),
]


@pytest.mark.parametrize(("place", "rows"), PLACES)
@pytest.mark.parametrize("shape", [(24,), (24, 40)])
def test_the_rows_that_are_ours_are_cut_out(place, rows, shape):
    fused = torch.randn(shape)
    ours = cut(place, fused)
    assert torch.equal(ours, fused[rows])
    assert tuple(ours.shape) == cut_shape(place, shape)


@pytest.mark.parametrize(("place", "rows"), PLACES)
def test_a_matrix_that_stands_the_other_way_round_is_cut_after_turning(place, rows):
    fused = torch.randn(40, 24)
    assert torch.equal(cut(place, fused.T), fused.T[rows])


@pytest.mark.parametrize(("place", "rows"), PLACES)
@pytest.mark.parametrize("format", [INT4, WeightFormat(4, 64, has_zeros=True), WeightFormat(8, 32)])
def test_integers_are_cut_with_their_scales(place, rows, format):
    fused = quantize_groups(torch.randn(24, 100), format)
    ours = cut(place, fused)
    assert torch.equal(ours.dequantize(), fused.dequantize()[rows])
    assert tuple(ours.shape) == cut_shape(place, (24, 100))


def test_neighbouring_rows_are_not_copied():
    fused = torch.randn(24, 40)
    assert cut(PLACES[1][0], fused).data_ptr() == fused[8:].data_ptr()


@pytest.mark.parametrize(
    ("place", "shape"),
    [
        (CheckpointTensor(NAMES, 5, 0, 1), (24, 40)),
        (CheckpointTensor(NAMES, None, 20, 8), (24, 40)),
        (CheckpointTensor(NAMES, None, 25), (24, 40)),
        (CheckpointTensor(NAMES, 6, 4, 3), (24,)),
        (CheckpointTensor(NAMES, None, 0, 1), ()),
    ],
)
def test_rows_that_do_not_divide_are_refused(place, shape):
    with pytest.raises(ModelFileError, match=r"fused\.weight has shape.*do not belong together"):
        cut_shape(place, shape)
    with pytest.raises(ModelFileError):
        cut(place, torch.zeros(shape))
