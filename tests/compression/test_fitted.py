"""Trained numbers of a block: they begin at the block, and what they settle to is what was used."""

import pytest
import torch

from martlet.compression.fitted import FittedBlock
from martlet.compression.nearest import quantize_matrix
from martlet.quantization.formats import parse_format

CPU = torch.device("cpu")
FORMATS = ["int4-g32", "int4-g128", "int4-g64-asym", "int8", "int8-g64"]
# 3 groups of 32 and a rest, so that tails are there for every group size
SHAPE = (6, 108)


def _block(name, seed=0):
    generator = torch.Generator().manual_seed(seed)
    floats = {
        "a.weight": torch.randn(SHAPE, generator=generator) * 0.05,
        "norm.weight": 1 + 0.1 * torch.randn(8, generator=generator),
        "a.bias": torch.zeros(6),
    }
    matrix = quantize_matrix(floats["a.weight"], parse_format(name), candidates=4)
    return {**floats, "a.weight": matrix}, floats


def _moved(numbers, size, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: number + size * torch.randn(number.shape, generator=generator)
        for name, number in numbers.items()
    }


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("has_levels", [False, True])
def test_a_block_begins_as_it_is(name, has_levels):
    weights, floats = _block(name)
    fitted = FittedBlock(weights, {"a.weight": floats["a.weight"]} if has_levels else None)
    numbers = fitted.start(CPU)
    dense = fitted.dense(numbers, CPU, torch.float32)
    assert torch.equal(dense["a.weight"], weights["a.weight"].dequantize())
    assert torch.equal(dense["norm.weight"], weights["norm.weight"])
    settled = fitted.settled(numbers)
    assert torch.equal(settled["a.weight"].data, weights["a.weight"].data)
    assert torch.equal(settled["a.weight"].scale, weights["a.weight"].scale)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("has_levels", [False, True])
def test_what_is_stored_is_what_was_trained_with(name, has_levels):
    weights, floats = _block(name)
    fitted = FittedBlock(weights, {"a.weight": floats["a.weight"]} if has_levels else None)
    numbers = _moved(fitted.start(CPU), 0.4)
    fitted.keep_inside(numbers)
    dense = fitted.dense(numbers, CPU, torch.float32)
    settled = fitted.settled(numbers)
    assert settled["a.weight"].format == weights["a.weight"].format
    assert torch.equal(settled["a.weight"].dequantize(), dense["a.weight"])
    assert torch.equal(settled["norm.weight"], dense["norm.weight"])
    assert torch.equal(settled["a.bias"], dense["a.bias"])
    assert not torch.equal(dense["a.weight"], weights["a.weight"].dequantize())
    is_same = torch.equal(settled["a.weight"].data, weights["a.weight"].data)
    assert is_same is not has_levels


@pytest.mark.parametrize("name", FORMATS)
def test_levels_lie_where_the_float_weights_do_unless_another_integer_was_chosen(name):
    weights, floats = _block(name)
    fitted = FittedBlock(weights, {"a.weight": floats["a.weight"]})
    levels = fitted.start(CPU)["a.weight:levels"]
    matrix = weights["a.weight"]
    integers = matrix.data if matrix.format.bits == 8 else matrix.integers()
    assert (levels - integers).abs().max() <= 0.49 + 1e-5
    # Between the integers there are levels: the float weights were not rounded away.
    assert (levels - integers).abs().mean() > 0.1


@pytest.mark.parametrize("name", FORMATS)
def test_gradients_of_scales_and_zeros_are_those_of_plain_arithmetic(name):
    weights, _ = _block(name)
    fitted = FittedBlock(weights)
    matrix = weights["a.weight"]
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    numbers = fitted.start(CPU)
    for number in numbers.values():
        number.requires_grad_()
    dense = fitted.dense(numbers, CPU, torch.float32)
    (dense["a.weight"] * direction).sum().backward()
    # The same, written out for one group of a row at a time.
    size = matrix.format.group_size or SHAPE[1]
    integers = (matrix.data if matrix.format.bits == 8 else matrix.integers()).float()
    scale = matrix.scale.float().view(SHAPE[0], -1)
    row_scale = getattr(matrix, "row_scale", torch.ones(SHAPE[0]))
    for group in range(scale.shape[1]):
        part = slice(group * size, (group + 1) * size)
        center = 8.0 if matrix.format.bits == 4 else 0.0
        if matrix.format.has_zeros:
            center = matrix.zero[:, group : group + 1].float()
        step = scale[:, group] * row_scale
        of_scale = (direction[:, part] * (integers[:, part] - center)).sum(1) * step
        torch.testing.assert_close(numbers["a.weight:scale"].grad[:, group], of_scale)
        if matrix.format.has_zeros:
            of_zero = -4.0 * step * direction[:, part].sum(1)
            torch.testing.assert_close(numbers["a.weight:zero"].grad[:, group], of_zero)


def test_the_gradient_of_a_level_passes_the_rounding():
    weights, floats = _block("int4-g32")
    fitted = FittedBlock(weights, {"a.weight": floats["a.weight"]})
    numbers = fitted.start(CPU)
    levels = numbers["a.weight:levels"].requires_grad_()
    direction = torch.randn(SHAPE, generator=torch.Generator().manual_seed(2))
    (fitted.dense(numbers, CPU, torch.float32)["a.weight"] * direction).sum().backward()
    matrix = weights["a.weight"]
    step = matrix.scale.float() * matrix.row_scale[:, None]
    expected = direction * step.repeat_interleave(32, 1)[:, : SHAPE[1]]
    torch.testing.assert_close(levels.grad, expected)


def test_frozen_weights_have_no_numbers():
    weights, _ = _block("int4-g32")
    fitted = FittedBlock(weights, frozen=["a.weight"])
    assert sorted(fitted.start(CPU)) == ["a.bias:change", "norm.weight:change"]
    dense = fitted.dense(fitted.start(CPU), CPU, torch.float32)
    assert torch.equal(dense["a.weight"], weights["a.weight"].dequantize())
