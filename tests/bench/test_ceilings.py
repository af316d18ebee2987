import pytest
import torch

from martlet.bench.ceilings import measure_ceilings


def test_a_processor_has_the_speed_of_its_memory_and_no_link():
    ceilings = measure_ceilings(torch.device("cpu"))
    # Slower than any memory in use, faster than any to come.
    assert 1e8 < ceilings.memory_bytes_per_second < 1e13
    assert ceilings.pcie_bytes_per_second is None
    assert ceilings.matrix_flop_per_second is None


@pytest.mark.gpu
def test_a_gpu_copies_faster_inside_than_over_the_link():
    ceilings = measure_ceilings(torch.device("cuda", 0))
    assert ceilings.memory_bytes_per_second > ceilings.pcie_bytes_per_second > 1e8
    # Far under what an H200 or anything near it does, far over float32 on a processor.
    assert 1e11 < ceilings.matrix_flop_per_second < 1e17
