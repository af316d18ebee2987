"""Where compression computes: the GPU if the work fits there, else the processor."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from martlet.compression.compress_block import Method
from martlet.compression.compressor import Placement
from martlet.compression.footprint import Footprint, footprint
from martlet.compression.walk import Sample
from martlet.device.gpu_memory import GpuMemoryWatch, nvml_reader
from martlet.device.probe import peak_rss_bytes, probe_ram
from martlet.device.size import format_bytes, parse_bytes
from martlet.engine.machine import GpuState, capped, first_gpu, probe_gpu_state
from martlet.errors import CapacityError, UsageError
from martlet.models.architecture import Architecture

__all__ = ["Limits", "Place", "choose_place"]

# The library that factorises Hessians brings code and workspace of its own onto the card.
_SOLVER_BYTES = 256 << 20


@dataclass(frozen=True)
class Place:
    """A device, and what may be taken of its memory beside the driver's own (None on a CPU).

    ``context_bytes`` is the driver's own.
    """

    device: torch.device
    dtype: torch.dtype
    gpu_bytes: int | None = None
    context_bytes: int = 0
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
        # The context is there already.
        watch = GpuMemoryWatch(nvml_reader(index), held_bytes=self.context_bytes)
        self._watches.append(watch)
        try:
            with watch:
                yield Placement(self.device, self.dtype)
        finally:
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(1.0, index)

    def peak_gpu_bytes(self) -> int | None:
        """The most GPU memory of this process so far."""
        for watch in self._watches:
            watch.sample()
        return max((watch.peak_bytes or 0 for watch in self._watches), default=0) or None


@dataclass(frozen=True)
class Limits:
    """What a caller allows: sizes as in "6GiB" (None: all there is), and "auto", "cuda" or "cpu".

    Raises:
        UsageError: a value is not valid.
    """

    gpu_memory: str | int | None = None
    ram: str | int | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        if self.device not in ("auto", "cuda", "cpu"):
            raise UsageError(f"device is {self.device!r}; it must be auto, cuda or cpu")
        for name in ("gpu_memory", "ram"):
            size = getattr(self, name)
            if size is not None:
                object.__setattr__(self, name, parse_bytes(size, name))

    def ram_bytes(self) -> int:
        """Main memory that may still be taken.

        What the program holds already counts against a wish, not against what is available.
        """
        wish = self.of("ram")
        left = None if wish is None else max(0, wish - peak_rss_bytes())
        return capped(probe_ram().available_bytes, left)

    def of(self, name: str) -> int | None:
        """A size in bytes."""
        size = getattr(self, name)
        assert size is None or isinstance(size, int), "parsed above"
        return size


def choose_place(
    architecture: Architecture,
    dtype_on: Callable[[tuple[int, int] | None], torch.dtype],
    samples: Sequence[Sample],
    method: Method,
    limits: Limits,
) -> Place:
    """The first of GPU and processor that ``limits`` allow and that has the memory.

    ``dtype_on`` is the type of activations on a card of a capability, on a processor for None.

    Raises:
        CapacityError: none has; names what is needed and what may be used.
        UsageError: there is no GPU for "cuda".
    """
    gpu = first_gpu(limits.device)
    if gpu is not None:
        card = torch.device("cuda", gpu.index)
        state = probe_gpu_state(card)
        dtype = dtype_on(state.capability)
        needed = footprint(architecture, samples, method, card, dtype)
        try:
            allowed = _allowed_on_card(needed, state, limits)
            return Place(card, dtype, allowed, state.context_bytes)
        except CapacityError:
            if limits.device == "cuda":
                raise
    cpu, dtype = torch.device("cpu"), dtype_on(None)
    needed = footprint(architecture, samples, method, cpu, dtype)
    _require_ram(needed.device_bytes + needed.host_bytes, limits)
    return Place(cpu, dtype)


def _allowed_on_card(needed: Footprint, state: GpuState, limits: Limits) -> int:
    """What torch may take of the card."""
    own_bytes = state.context_bytes + _SOLVER_BYTES
    allowed = capped(state.available_bytes, limits.of("gpu_memory")) - own_bytes
    if needed.device_bytes > allowed:
        raise CapacityError(
            f"compressing needs {format_bytes(needed.device_bytes + own_bytes)} of GPU "
            f"memory for its largest block, {format_bytes(allowed + own_bytes)} may be "
            "used; raise --gpu-memory, use --method nearest or --device cpu"
        )
    _require_ram(needed.host_bytes, limits)
    return allowed


def _require_ram(needed_bytes: int, limits: Limits) -> None:
    allowed = limits.ram_bytes()
    if needed_bytes > allowed:
        raise CapacityError(
            f"compressing needs {format_bytes(needed_bytes)} of main memory, "
            f"{format_bytes(allowed)} may be used; take fewer --samples, raise --ram, "
            "or close other programs"
        )
