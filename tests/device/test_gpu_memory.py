import time

import pytest

from martlet.device.gpu_memory import GpuMemoryWatch, Reading, nvml_reader


def readings(*values):
    """A reader that gives these one after the other and then repeats the last."""
    left = list(values)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_the_process_counts_where_the_driver_names_it():
    read = readings(Reading(None, 900), Reading(None, 950), Reading(300, 1200), Reading(200, 5000))
    with GpuMemoryWatch(read, interval_seconds=60) as watch:
        for _ in range(3):
            watch.sample()
    assert watch.peak_bytes == 300


def test_the_growth_of_the_card_counts_where_the_driver_names_no_process():
    read = readings(Reading(None, 900), Reading(None, 1900), Reading(None, 1000))
    with GpuMemoryWatch(read, interval_seconds=60) as watch:
        watch.sample()
    assert watch.peak_bytes == 1000


def test_what_the_process_held_before_is_added_to_the_growth_alone():
    read = readings(Reading(None, 900), Reading(None, 1900))
    with GpuMemoryWatch(read, 60, held_bytes=70) as watch:
        watch.sample()
    assert watch.peak_bytes == 1070
    with GpuMemoryWatch(readings(Reading(300, 900)), 60, held_bytes=70) as watch:
        watch.sample()
    assert watch.peak_bytes == 300


def test_other_programs_that_end_meanwhile_make_no_negative_peak():
    with GpuMemoryWatch(readings(Reading(None, 900), Reading(None, 100)), 60) as watch:
        watch.sample()
    assert watch.peak_bytes == 0


def test_a_peak_between_two_looks_of_the_program_is_seen_by_the_thread():
    used = [10]
    with GpuMemoryWatch(lambda: Reading(used[0], 0), interval_seconds=0.001) as watch:
        used[0] = 70
        deadline = time.monotonic() + 10
        while watch.peak_bytes != 70 and time.monotonic() < deadline:
            time.sleep(0.001)
        used[0] = 20
    assert watch.peak_bytes == 70


def test_without_a_reader_nothing_is_claimed():
    with GpuMemoryWatch(None) as watch:
        watch.sample()
    assert watch.peak_bytes is None


def test_no_card_of_that_number_means_no_reader(monkeypatch):
    # On a machine without a driver, and on one with fewer cards than that.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert nvml_reader(7) is None


@pytest.mark.gpu
def test_what_torch_allocates_is_part_of_the_process():
    import torch

    torch.zeros(1, device="cuda")
    reader = nvml_reader()
    if reader is None or reader().process_bytes is None:
        pytest.skip("the driver does not tell programs apart, and others may use the card")
    with GpuMemoryWatch(reader) as watch:
        data = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
        watch.sample()
    del data
    # Context and code come on top: 676 MiB on an H200, less on all other cards so far.
    assert 1 << 30 < watch.peak_bytes < 2 << 30
