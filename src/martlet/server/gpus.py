"""Memory of the graphics cards as the driver counts it; needs no torch."""

from __future__ import annotations

import contextlib
from typing import Any

__all__ = ["read_gpus"]


def read_gpus() -> list[dict[str, Any]]:
    """Name and memory of each card; nothing where there is no driver."""
    import pynvml

    cards = []
    with contextlib.suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = pynvml.nvmlDeviceGetName(handle)
            cards.append(
                {"name": name, "total_bytes": int(memory.total), "used_bytes": int(memory.used)}
            )
    return cards
