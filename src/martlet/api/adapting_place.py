"""Where an adaptation computes, and what of it stays there."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from martlet.api.compressing_place import Place
from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.adaptation_footprint import AdaptationFootprint, adaptation_footprint
from martlet.compression.compressor import Placement
from martlet.compression.walk import Sample
from martlet.device.probe import probe_ram
from martlet.device.size import format_bytes, parse_bytes
from martlet.engine.machine import capped, first_gpu, probe_gpu_state
from martlet.errors import CapacityError, UsageError
from martlet.models.architecture import Architecture

__all__ = ["AdaptationPlace", "Demand", "choose_adaptation_place"]

# What the allocator cannot fill, of what a plan leaves to it.
_USABLE = 0.9


@dataclass(frozen=True)
class AdaptationPlace:
    """A device; whether the model stays on it; and what trained integers may take of its memory."""

    place: Place
    is_resident: bool
    max_trained_bytes: int | None

    @contextlib.contextmanager
    def held(self) -> Iterator[Placement]:
        """The placement; float32 products of a GPU take their inputs as TF32 meanwhile."""
        before = torch.get_float32_matmul_precision()
        if self.place.device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        try:
            with self.place.held() as placement:
                yield placement
        finally:
            torch.set_float32_matmul_precision(before)


@dataclass(frozen=True)
class Demand:
    """What is to be trained on what; ``weights`` are those of the student, by block."""

    architecture: Architecture
    weights: Mapping[str, Sequence[PlannedWeight]]
    samples: Sequence[Sample]
    rows_at_once: int
    batch_size: int

    def footprint(self, dtype: torch.dtype) -> AdaptationFootprint:
        """The memory that it takes in this type."""
        return adaptation_footprint(
            self.architecture,
            self.weights,
            self.samples,
            self.rows_at_once,
            self.batch_size,
            dtype,
        )


def choose_adaptation_place(
    demand: Demand, gpu_memory: str | int | None, ram: str | int | None, device: str
) -> AdaptationPlace:
    """The first of GPU and processor that ``device`` allows and that has the memory.

    A GPU computes in float32 where all of the model stays there, else in bfloat16 if it has it.

    Raises:
        CapacityError: none has; names what is needed and what may be used.
        UsageError: an argument is not valid, or there is no GPU for "cuda".
    """
    if device not in ("auto", "cuda", "cpu"):
        raise UsageError(f"device is {device!r:.40}; it must be auto, cuda or cpu")
    gpu_wish = None if gpu_memory is None else parse_bytes(gpu_memory, "gpu_memory")
    ram_wish = None if ram is None else parse_bytes(ram, "ram")
    gpu = first_gpu(device)
    if gpu is not None:
        try:
            return _on_card(demand, torch.device("cuda", gpu.index), gpu_wish, ram_wish)
        except CapacityError:
            if device == "cuda":
                raise
    needed = demand.footprint(torch.float32)
    available = _ram(ram_wish) - needed.running_bytes - needed.model_bytes
    levels = int(_USABLE * available)
    if levels < needed.smallest_levels_bytes:
        _refuse("main memory", needed.smallest_levels_bytes - levels, "--ram, or fewer --samples")
    return AdaptationPlace(
        Place(torch.device("cpu"), torch.float32), True, min(levels, needed.all_levels_bytes)
    )


def _on_card(
    demand: Demand, card: torch.device, gpu_wish: int | None, ram_wish: int | None
) -> AdaptationPlace:
    state = probe_gpu_state(card)
    allowed = capped(state.available_bytes, gpu_wish) - state.context_bytes
    usable = int(_USABLE * allowed)
    whole = demand.footprint(torch.float32)
    kept = whole.running_bytes + whole.model_bytes
    if kept + whole.all_levels_bytes <= usable:
        place = Place(card, torch.float32, allowed, state.context_bytes)
        return AdaptationPlace(place, True, whole.all_levels_bytes)
    dtype = torch.bfloat16 if state.capability >= (8, 0) else torch.float32
    needed = demand.footprint(dtype)
    levels = usable - needed.running_bytes
    if levels < needed.smallest_levels_bytes:
        _refuse("GPU memory", needed.smallest_levels_bytes - levels, "--gpu-memory or --device cpu")
    missing = needed.model_bytes - _ram(ram_wish)
    if missing > 0:
        _refuse("main memory", missing, "--ram, or fewer --samples")
    place = Place(card, dtype, allowed, state.context_bytes)
    return AdaptationPlace(place, False, min(levels, needed.all_levels_bytes))


def _ram(wish_bytes: int | None) -> int:
    """What the program holds already counts against a wish, not against what is available."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    wish = None if wish_bytes is None else max(0, wish_bytes - held)
    return capped(probe_ram().available_bytes, wish)


def _refuse(what: str, missing_bytes: int, change: str) -> None:
    raise CapacityError(
        f"adapting this model needs {format_bytes(missing_bytes)} of {what} more than may be "
        f"used; take shorter --sample-tokens, or change {change}"
    )
