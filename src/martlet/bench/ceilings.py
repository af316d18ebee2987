"""How fast a machine is with nothing else to do, measured beside what is compared with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from martlet.bench.limits import Ceilings
from martlet.device.probe import measure_ram_bandwidth

__all__ = ["measure_ceilings"]

_COPY_BYTES = 1 << 30  # far more than any cache
_LINK_BYTES = 256 << 20  # as large as the largest blocks
_MATRIX_SIDE = 8192
_REPETITIONS = 11


def measure_ceilings(device: torch.device) -> Ceilings:
    """The limits of a device: reads of main memory on the CPU; copies, link and products on a GPU.

    On a GPU this takes up to 2 GiB of its free memory for a moment, half of what is free at most.
    """
    if device.type == "cpu":
        return Ceilings(measure_ram_bandwidth())
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1.0, device)  # a budget may be in force
    free_bytes, _ = torch.cuda.mem_get_info(device)
    room_bytes = min(_COPY_BYTES, free_bytes // 4)
    return Ceilings(
        _copy_rate(device, room_bytes),
        _link_rate(device, min(_LINK_BYTES, room_bytes)),
        _product_rate(device, room_bytes),
    )


def _copy_rate(device: torch.device, num_bytes: int) -> float:
    """Bytes read and bytes written, together."""
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _seconds(lambda: target.copy_(source), device)


def _link_rate(device: torch.device, num_bytes: int) -> float:
    source = torch.ones(num_bytes, dtype=torch.uint8).pin_memory()
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return num_bytes / _seconds(lambda: target.copy_(source, non_blocking=True), device)


def _product_rate(device: torch.device, room_bytes: int) -> float:
    side = _MATRIX_SIDE
    while 3 * 2 * side * side > room_bytes:
        side //= 2
    left, right = (torch.randn(side, side, device=device, dtype=torch.float16) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 / _seconds(lambda: torch.matmul(left, right, out=out), device)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """The median, by the clock of the device; the first run does not count."""
    times: list[float] = []
    for number in range(_REPETITIONS + 1):
        start, end = (_event() for _ in range(2))
        start.record(torch.cuda.current_stream(device))
        work()
        end.record(torch.cuda.current_stream(device))
        end.synchronize()
        if number:
            times.append(start.elapsed_time(end) / 1000)
    return statistics.median(times)


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
