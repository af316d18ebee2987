"""The native code gives every bit that torch's operations give."""

import pytest
import torch

from martlet.compression import absmax
from martlet.compression.absmax import quantize_rows
from martlet.errors import ModelFileError
from martlet.kernels.cpu import native, round_rows
from martlet.kernels.cpu.round_rows import find_rounder

pytestmark = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture
def both(monkeypatch):
    """Quantises a matrix by native code and by torch."""

    def run(weight):
        monkeypatch.setattr(absmax, "_NATIVE_FROM_ELEMENTS", 0)
        by_code = quantize_rows(weight, "w")
        monkeypatch.setattr(absmax, "_NATIVE_FROM_ELEMENTS", 1 << 60)
        return by_code, quantize_rows(weight, "w")

    return run


def assert_same(results):
    by_code, by_torch = results
    assert torch.equal(by_code.scale, by_torch.scale)
    assert torch.equal(by_code.data, by_torch.data)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (65, 512), (40, 1500)])
def test_bits_are_those_of_torch(both, dtype, shape):
    random = torch.Generator().manual_seed(1)
    weight = torch.randn(shape, generator=random) * torch.logspace(-7, 2, shape[0])[:, None]
    assert find_rounder(weight.to(dtype)) is not None
    assert_same(both(weight.to(dtype)))


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_number_of_16_bits_is_rounded_as_torch_does(both, dtype):
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    weight = bits.view(torch.bfloat16 if dtype == torch.float32 else dtype).to(dtype)
    weight = weight[torch.isfinite(weight)]
    # Rows of like magnitudes, so that not all of them become zero.
    weight = weight[weight.abs().sort().indices]
    rows = weight[: len(weight) // 60 * 60].view(-1, 60)
    assert_same(both(rows))


def test_rows_without_magnitude_and_the_smallest_numbers_are_rounded_alike(both):
    weight = torch.zeros(4, 70)
    weight[1] = 1e-45
    weight[2] = 2.6e-43 * torch.linspace(-1, 1, 70)  # its scale has few bits left
    weight[3, 69] = 3.0
    assert_same(both(weight))


def test_rows_that_lie_apart_are_read_where_they_are(both):
    weight = torch.randn(64, 200)[::2, 10:130]
    assert find_rounder(weight) is not None
    assert_same(both(weight))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_named_with_its_row(monkeypatch, dtype, bad):
    monkeypatch.setattr(absmax, "_NATIVE_FROM_ELEMENTS", 0)
    weight = torch.ones(50, 33, dtype=dtype)
    weight[41, 32] = bad
    with pytest.raises(ModelFileError, match="w: row 41 holds"):
        quantize_rows(weight, "w")


def test_threads_share_the_rows(both):
    before = torch.get_num_threads()
    weight = torch.randn(333, 64)
    try:
        torch.set_num_threads(2)
        assert_same(both(weight))
    finally:
        torch.set_num_threads(before)


def test_torch_does_what_native_code_cannot(monkeypatch):
    assert find_rounder(torch.zeros(4, 4, dtype=torch.float64)) is None
    assert find_rounder(torch.zeros(4, 8).T) is None
    monkeypatch.setenv("MARTLET_NATIVE", "0")
    round_rows._tried.cache_clear()
    try:
        assert find_rounder(torch.zeros(4, 4)) is None
    finally:
        round_rows._tried.cache_clear()
