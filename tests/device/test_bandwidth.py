import subprocess
import sys

import pytest
import torch

from martlet.device.bandwidth import (
    format_rate,
    measure_gpu_copy_bandwidth,
    measure_matrix_rate,
    measure_pcie_bandwidth,
    parse_flops,
    parse_rate,
)
from martlet.errors import UsageError


@pytest.mark.parametrize(
    ("text", "bytes_per_second"),
    [("192GB/s", 192e9), ("12 GiB/s", 12 * 2**30), ("12gb", 12e9), ("1.5TB/sec", 1.5e12), (7, 7)],
)
def test_rates_are_sizes_a_second(text, bytes_per_second):
    assert parse_rate(text) == bytes_per_second


@pytest.mark.parametrize("text", ["", "fast", "192GB/min", "0GB/s", "-3GB/s", "GB/s"])
def test_what_is_no_rate_is_refused_with_an_example(text):
    with pytest.raises(UsageError, match=r"--gpu-bandwidth is .* as in 192GB/s"):
        parse_rate(text, "--gpu-bandwidth")


@pytest.mark.parametrize(
    ("text", "per_second"),
    [("4.4TFLOPS", 4.4e12), ("990 t", 990e12), ("8Gflop/s", 8e9), (3e12, 3e12)],
)
def test_rates_of_operations_are_written_as_on_data_sheets(text, per_second):
    assert parse_flops(text) == per_second


@pytest.mark.parametrize("text", ["", "4.4", "T", "1e3T", "9999999P", float("nan")])
def test_what_is_no_rate_of_operations_is_refused(text):
    with pytest.raises(UsageError, match=r"as in 4.4TFLOPS"):
        parse_flops(text)


def test_rates_are_shown_in_decimal_units():
    assert format_rate(55.2e9) == "55.2 GB/s"
    assert format_rate(4.115e12) == "4.12 TB/s"


def test_reading_rates_does_not_load_torch():
    code = "import sys, martlet.device.bandwidth; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.gpu
def test_a_gpu_reads_its_own_memory_faster_than_it_is_copied_to():
    device = torch.device("cuda")
    pcie = measure_pcie_bandwidth(device)
    own = measure_gpu_copy_bandwidth(device)
    # From PCIe 2 x4 to links that are faster than PCIe; memory is faster on every card.
    assert 1e9 < pcie < own < 1e14


@pytest.mark.gpu
def test_registered_memory_is_free_again_after_the_measurement():
    device = torch.device("cuda")
    before = torch.cuda.memory_allocated(device)
    rates = [measure_pcie_bandwidth(device, 64 << 20) for _ in range(3)]
    assert torch.cuda.memory_allocated(device) == before
    # A second registration of memory that still is registered fails: then copies are pageable,
    # several times slower. Twofold covers what other programs do to the link.
    assert max(rates) < 2 * min(rates)


@pytest.mark.gpu
def test_the_matrix_rate_is_that_of_large_products():
    assert measure_matrix_rate(torch.device("cuda")) > 1e11
