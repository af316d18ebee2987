"""How fast a GPU reads its memory, is copied to and multiplies; and how rates are written.

Each measurement takes a fraction of a second and gives its memory back to torch's cache. The best
of several passes counts: what disturbs one only makes it slower. torch is loaded when measuring.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from martlet.device.size import parse_bytes
from martlet.errors import UsageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "format_rate",
    "measure_gpu_copy_bandwidth",
    "measure_matrix_rate",
    "measure_pcie_bandwidth",
    "parse_flops",
    "parse_rate",
]

_LEAST_FLOPS, _MOST_FLOPS = 1e6, 1e18
_FLOPS = re.compile(r"(\d+(?:\.\d+)?)\s*([GTP])(?:FLOPS|FLOP/S)?", re.IGNORECASE)
_FLOPS_FACTORS = {"G": 1e9, "T": 1e12, "P": 1e15}


def measure_pcie_bandwidth(device: torch.device, num_bytes: int = 256 << 20) -> float:
    """Bytes per second of one large copy to the GPU, from registered (page-locked) memory.

    Where the system locks no memory, the rate of ordinary memory, several times lower: that is
    what streaming has there.
    """
    import torch

    from martlet.device.host import HostBuffer

    host = HostBuffer(num_bytes)
    host.data.fill_(1)  # registering pages that nobody has touched is slow
    host.lock()
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return num_bytes / _best_seconds(device, lambda: target.copy_(host.data, non_blocking=True))


def measure_gpu_copy_bandwidth(device: torch.device, num_bytes: int = 256 << 20) -> float:
    """Bytes per second that a copy within the GPU's memory reads and writes, both counted."""
    import torch

    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _best_seconds(device, lambda: target.copy_(source))


def measure_matrix_rate(device: torch.device, size: int = 4096) -> float:
    """Operations per second of a square float16 product, additions and multiplications counted."""
    import torch

    # Not zeros or ones: products of those draw less power and so run at higher clocks.
    left, right = torch.randn(2, size, size, dtype=torch.float16, device=device)
    product = torch.empty_like(left)
    return 2 * size**3 / _best_seconds(device, lambda: torch.mm(left, right, out=product))


def _best_seconds(device: torch.device, run: Callable[[], object], repetitions: int = 5) -> float:
    """Device time of the fastest run after one that is not counted."""
    import torch

    best_seconds = float("inf")
    with torch.cuda.device(device):
        run()
        for _ in range(repetitions):
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            run()
            end.record()
            end.synchronize()
            best_seconds = min(best_seconds, start.elapsed_time(end) / 1e3)
    return best_seconds


def parse_rate(rate: str | float, name: str = "rate") -> float:
    """Bytes per second: ``"192GB/s"``, ``"12 GiB/s"``, ``"12GB"``, or a number.

    Raises:
        UsageError: not a rate, or not positive.
    """
    text = rate.strip() if isinstance(rate, str) else str(int(rate))
    try:
        return float(parse_bytes(re.sub(r"/s(ec)?$", "", text, flags=re.IGNORECASE), name))
    except UsageError as error:
        raise UsageError(
            f"{name} is {rate!r:.40}, which is not a rate; write it as in 192GB/s"
        ) from error


def parse_flops(rate: str | float, name: str = "flops") -> float:
    """Operations per second: ``"4.4TFLOPS"``, ``"900T"``, or a number.

    Raises:
        UsageError: not a rate, or out of range.
    """
    if isinstance(rate, str):
        match = _FLOPS.fullmatch(rate.strip())
        value = float(match[1]) * _FLOPS_FACTORS[match[2].upper()] if match else 0.0
    else:
        value = float(rate)
    if not _LEAST_FLOPS <= value <= _MOST_FLOPS:
        raise UsageError(
            f"{name} is {rate!r:.40}, which is not a rate of operations; write it as in 4.4TFLOPS"
        )
    return value


def format_rate(bytes_per_second: float) -> str:
    """A rate for people, in decimal units as data sheets have them: ``55.2 GB/s``."""
    giga = bytes_per_second / 1e9
    return f"{giga:,.1f} GB/s" if giga < 1000 else f"{giga / 1000:,.2f} TB/s"
