"""Float matrices of a model whose inputs or rows were scaled before they were rounded."""

import pytest
import torch

from martlet.compression.latents import aligned
from martlet.compression.nearest import quantize_matrix
from martlet.quantization.formats import parse_format

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def matrix():
    return torch.randn(96, 128, generator=torch.Generator().manual_seed(0))


def test_a_matrix_that_was_only_rounded_is_taken_as_it_is(matrix):
    weight = quantize_matrix(matrix, parse_format("int4-g128"), candidates=8)
    assert aligned(matrix, weight, CPU) is matrix


@pytest.mark.parametrize("which", ["inputs", "rows", "both"])
def test_factors_of_inputs_and_rows_are_found(matrix, which):
    generator = torch.Generator().manual_seed(1)
    scaled = matrix
    if which != "rows":
        scaled = scaled * (0.3 + 2 * torch.rand(1, 128, generator=generator))
    if which != "inputs":
        scaled = scaled * (0.3 + 2 * torch.rand(96, 1, generator=generator))
    weight = quantize_matrix(scaled, parse_format("int4-g32"), candidates=8)
    found = aligned(matrix, weight, CPU)
    # A factor is a mean over about 100 rounded weights, each 8 % off.
    error = (found - scaled).norm() / scaled.norm()
    assert error < 0.02
    assert error < 0.3 * (weight.dequantize() - scaled).norm() / scaled.norm()
