import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from martlet.compression.groups import quantize_groups
from martlet.errors import ModelFileError
from martlet.quantization.formats import WeightFormat, parse_format

NAMES = ["int4-g32", "int4-g64-asym", "int4-g128", "int8-g32", "int8-g128"]


def _matrix(rows, columns, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def _error(weight, quantized):
    return float((quantized.dequantize() - weight).norm() / weight.norm())


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.integers(1, 20), columns=st.integers(1, 200))
def test_every_integer_is_the_one_nearest_to_its_weight(name, rows, columns):
    format = parse_format(name)
    weight = _matrix(rows, columns)
    quantized = quantize_groups(weight, format)
    step = quantized.scale.float().abs() * quantized.row_scale[:, None]
    step = step.repeat_interleave(format.group_size, dim=1)[:, :columns]
    integers = quantized.integers().float()
    lowest, highest = (0, 15) if format.bits == 4 else (-127, 127)
    is_inside = (integers > lowest) & (integers < highest)
    difference = (quantized.dequantize() - weight).abs()
    assert (difference <= 0.5001 * step + 1e-7)[is_inside].all()


@pytest.mark.parametrize("name", NAMES)
def test_searching_ranges_does_not_cost(name):
    weight = _matrix(64, 256).pow(3)
    format = parse_format(name)
    plain = quantize_groups(weight, format)
    searched = quantize_groups(weight, format, candidates=12)
    # Refinement goes downhill from where it starts: now and then it ends a little higher.
    assert _error(weight, searched) <= 1.01 * _error(weight, plain)


def test_smaller_groups_and_zeros_are_more_exact():
    weight = _matrix(64, 512)
    errors = [
        _error(weight, quantize_groups(weight, parse_format(f"int4-g{n}"))) for n in (32, 64, 128)
    ]
    assert errors == sorted(errors)
    assert _error(weight, quantize_groups(weight, WeightFormat(4, 64, has_zeros=True))) < errors[1]
    assert errors[0] < 0.09  # a step of a ninth of the largest of 32 normal numbers, over sqrt(12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1e-12, 1e-4, 1e6])
def test_the_size_of_the_weights_does_not_matter(name, size):
    weight = _matrix(16, 128)
    format = parse_format(name)
    alike = _error(weight, quantize_groups(weight, format))
    assert _error(weight * size, quantize_groups(weight * size, format)) == pytest.approx(
        alike, rel=0.05
    )


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_groups_of_zeros_stay_zero(name):
    weight = _matrix(8, 256)
    weight[2] = 0
    weight[5, :128] = 0
    back = quantize_groups(weight, parse_format(name)).dequantize()
    assert not back[2].any()
    assert not back[5, :128].any()
    assert back[5, 128:].any()


def test_inputs_of_more_importance_are_more_exact():
    weight = _matrix(64, 128)
    importance = torch.ones(128)
    importance[::8] = 100
    format = parse_format("int4-g128")
    plain = quantize_groups(weight, format, candidates=8).dequantize() - weight
    weighted = quantize_groups(weight, format, candidates=8, importance=importance).dequantize()
    assert (weighted - weight)[:, ::8].norm() < plain[:, ::8].norm()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_no_number_is_refused_with_its_row(bad):
    weight = torch.zeros(40_000, 64)  # more than are searched at a time
    weight[39_001, 5] = bad
    with pytest.raises(ModelFileError, match="layer: row 39001 holds"):
        quantize_groups(weight, parse_format("int4"), "layer")
