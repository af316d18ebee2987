"""Running out of memory, said in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from martlet.errors import CapacityError

__all__ = ["report_out_of_memory"]

# torch has a class for the GPU's allocator alone; the CPU's says it in the text of a RuntimeError.
_CPU_ALLOCATOR = "DefaultCPUAllocator"


@contextmanager
def report_out_of_memory(doing: str, next_step: str) -> Iterator[None]:
    """Turn a failed allocation into an error that says what was being done and what to try.

    Raises:
        CapacityError: an allocation failed.
    """
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise CapacityError(f"out of memory while {doing}; {next_step}") from error
    except RuntimeError as error:
        if _CPU_ALLOCATOR not in str(error):
            raise
        raise CapacityError(f"out of memory while {doing}; {next_step}") from error
