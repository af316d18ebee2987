"""GPU memory of this whole process, as nvidia-smi counts it: context, code and graphs included.

What torch counts is only what torch has allocated.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

__all__ = ["GpuMemoryWatch", "Reading", "nvml_reader"]

_INTERVAL_SECONDS = 0.02


@dataclass(frozen=True)
class Reading:
    """Use of one card at one moment.

    ``process_bytes`` is None while the driver names no memory of this process: before it has a
    context, and always where the driver does not see its process id (in many containers).
    """

    process_bytes: int | None
    device_bytes: int


class GpuMemoryWatch:
    """Keeps the peak while it is entered; enter it before the process first uses the card.

    Where the driver does not tell processes apart, it is the growth of the card's use since then,
    which other programs on the card would be part of; ``held_bytes``, what this process has of the
    card when it is entered, is added to that. ``read`` None (no NVML) measures nothing.
    """

    def __init__(
        self,
        read: Callable[[], Reading] | None,
        interval_seconds: float = _INTERVAL_SECONDS,
        *,
        held_bytes: int = 0,
    ) -> None:
        self._read = read
        self._interval_seconds = interval_seconds
        self._held_bytes = held_bytes
        self._baseline_bytes = 0
        self._process_peak_bytes: int | None = None
        self._device_peak_bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-memory", daemon=True)

    @property
    def peak_bytes(self) -> int | None:
        """The most so far; None where nothing can be measured."""
        if self._read is None:
            return None
        if self._process_peak_bytes is not None:
            return self._process_peak_bytes
        return max(0, self._device_peak_bytes - self._baseline_bytes) + self._held_bytes

    def sample(self) -> None:
        """Look once, now."""
        if self._read is None:
            return
        reading = self._read()
        self._device_peak_bytes = max(self._device_peak_bytes, reading.device_bytes)
        if reading.process_bytes is not None:
            self._process_peak_bytes = max(self._process_peak_bytes or 0, reading.process_bytes)

    def __enter__(self) -> GpuMemoryWatch:
        if self._read is not None:
            self._baseline_bytes = self._device_peak_bytes = self._read().device_bytes
            self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._read is not None:
            self._stop.set()
            self._thread.join()
            self.sample()

    def _run(self) -> None:
        while not self._stop.wait(self._interval_seconds):
            self.sample()


def nvml_reader(index: int = 0) -> Callable[[], Reading] | None:
    """What reads the use of the card that CUDA calls ``index``; None without driver or card.

    Makes no CUDA context. CUDA_VISIBLE_DEVICES is followed; where a machine has cards of several
    kinds, CUDA_DEVICE_ORDER=PCI_BUS_ID makes CUDA count them as the driver does.
    """
    try:
        import pynvml
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
        handle = _handle(pynvml, index)
    except pynvml.NVMLError:
        return None

    def read() -> Reading:
        device_bytes = int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)
        try:
            processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        except pynvml.NVMLError:
            return Reading(None, device_bytes)
        own = [p.usedGpuMemory for p in processes if p.pid == os.getpid()]
        return Reading(own[0] if own else None, device_bytes)

    return read


def _handle(pynvml: Any, index: int) -> Any:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return pynvml.nvmlDeviceGetHandleByIndex(index)
    names = visible.split(",")
    name = names[index].strip() if index < len(names) else ""
    if name.isdigit():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name))
    return pynvml.nvmlDeviceGetHandleByUUID(name)
