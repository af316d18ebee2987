"""Where compression computes: the GPU if the work fits there, else the processor."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from martlet.compression.compress_block import Method
from martlet.compression.compressor import Placement
from martlet.compression.footprint import footprint
from martlet.compression.walk import Sample
from martlet.device.gpu_memory import GpuMemoryWatch, nvml_reader
from martlet.device.probe import probe_ram
from martlet.device.size import format_bytes, parse_bytes
from martlet.engine.loading import ModelFolder
from martlet.engine.machine import GpuState, capped, compute_dtype, first_gpu, probe_gpu_state
from martlet.errors import CapacityError, UsageError

__all__ = ["Place", "choose_place"]


@dataclass(frozen=True)
class Place:
    """A device, and what may be taken of its memory beside the driver's own (None on a CPU)."""

    device: torch.device
    dtype: torch.dtype
    gpu_bytes: int | None = None
    _watches: list[GpuMemoryWatch] = field(default_factory=list)

    @contextlib.contextmanager
    def held(self) -> Iterator[Placement]:
        """The placement, with torch held to the budget and the GPU's memory watched."""
        if self.gpu_bytes is None:
            yield Placement(self.device, self.dtype)
            return
        index = self.device.index or 0
        _, total_bytes = torch.cuda.mem_get_info(self.device)
        share = min(1.0, self.gpu_bytes / total_bytes)
        torch.cuda.set_per_process_memory_fraction(share, index)
        with GpuMemoryWatch(nvml_reader(index)) as watch:
            self._watches.append(watch)
            yield Placement(self.device, self.dtype)
        torch.cuda.set_per_process_memory_fraction(1.0, index)

    def peak_gpu_bytes(self) -> int | None:
        """The most GPU memory of this process so far."""
        for watch in self._watches:
            watch.sample()
        return max((watch.peak_bytes or 0 for watch in self._watches), default=0) or None


def choose_place(
    folder: ModelFolder,
    samples: Sequence[Sample],
    method: Method,
    gpu_memory: str | int | None,
    ram: str | int | None,
    device: str,
) -> Place:
    """The first of GPU and processor that ``device`` allows and that has the memory.

    Raises:
        CapacityError: none has; names what is needed and what may be used.
        UsageError: an argument is not valid, or there is no GPU for "cuda".
    """
    if device not in ("auto", "cuda", "cpu"):
        raise UsageError(f"device is {device!r}; it must be auto, cuda or cpu")
    gpu_wish = None if gpu_memory is None else parse_bytes(gpu_memory, "gpu_memory")
    ram_wish = None if ram is None else parse_bytes(ram, "ram")
    gpu = first_gpu(device)
    if gpu is not None:
        card = torch.device("cuda", gpu.index)
        try:
            return _on_card(
                folder, samples, method, probe_gpu_state(card), card, gpu_wish, ram_wish
            )
        except CapacityError:
            if device == "cuda":
                raise
    cpu, dtype = torch.device("cpu"), compute_dtype(folder.store.family, None)
    needed = footprint(folder.architecture, samples, method, cpu, dtype)
    _require_ram(needed.device_bytes + needed.host_bytes, ram_wish)
    return Place(cpu, dtype)


def _on_card(  # noqa: PLR0913
    folder: ModelFolder,
    samples: Sequence[Sample],
    method: Method,
    state: GpuState,
    card: torch.device,
    gpu_wish: int | None,
    ram_wish: int | None,
) -> Place:
    dtype = compute_dtype(folder.store.family, state.capability)
    needed = footprint(folder.architecture, samples, method, card, dtype)
    allowed = capped(state.available_bytes, gpu_wish) - state.context_bytes
    if needed.device_bytes > allowed:
        raise CapacityError(
            f"compressing needs {format_bytes(needed.device_bytes + state.context_bytes)} of GPU "
            f"memory for its largest block, {format_bytes(allowed + state.context_bytes)} may be "
            "used; raise --gpu-memory, use --method nearest or --device cpu"
        )
    _require_ram(needed.host_bytes, ram_wish)
    return Place(card, dtype, allowed)


def _require_ram(needed_bytes: int, wish_bytes: int | None) -> None:
    """What the program holds already counts against a wish, not against what is available."""
    available = probe_ram().available_bytes
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    allowed = capped(available, None if wish_bytes is None else max(0, wish_bytes - held))
    if needed_bytes > allowed:
        raise CapacityError(
            f"compressing needs {format_bytes(needed_bytes)} of main memory, "
            f"{format_bytes(allowed)} may be used; take fewer --samples, raise --ram, "
            "or close other programs"
        )
