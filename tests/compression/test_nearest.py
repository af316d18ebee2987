import pytest
import torch

from martlet.compression.absmax import quantize_rows
from martlet.compression.groups import quantize_groups
from martlet.compression.nearest import SEARCHED_RANGES, quantize_matrix
from martlet.errors import ModelFileError
from martlet.quantization.formats import INT8, parse_format

WEIGHT = torch.randn(32, 256, generator=torch.Generator().manual_seed(2))


def test_a_format_without_groups_gives_rows():
    rows = quantize_matrix(WEIGHT, INT8, candidates=SEARCHED_RANGES)
    assert torch.equal(rows.data, quantize_rows(WEIGHT).data)
    assert rows.format == INT8


@pytest.mark.parametrize("name", ["int4-g32", "int4-g64-asym", "int8-g128"])
def test_a_format_with_groups_gives_groups_and_a_search_lowers_their_error(name):
    format = parse_format(name)
    plain, searched = (quantize_matrix(WEIGHT, format, candidates=n) for n in (1, SEARCHED_RANGES))
    assert plain.format == searched.format == format
    expected = quantize_groups(WEIGHT, format, candidates=SEARCHED_RANGES)
    assert torch.equal(searched.dequantize(), expected.dequantize())
    errors = [float((q.dequantize() - WEIGHT).square().sum()) for q in (plain, searched)]
    # Steps of 8 bits are so small that the whole range is the best one.
    assert errors[1] < errors[0] if format.bits == 4 else errors[1] <= errors[0]


@pytest.mark.parametrize("name", ["int8", "int4-g32"])
def test_a_weight_that_is_not_finite_is_told_with_the_name_of_its_matrix(name):
    weight = WEIGHT.clone()
    weight[4, 7] = float("nan")
    with pytest.raises(ModelFileError, match=r"layer\.3: row 4"):
        quantize_matrix(weight, parse_format(name), "layer.3")
