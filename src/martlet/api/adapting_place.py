"""Where an adaptation computes, and what of it stays there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from martlet.api.compressing_place import Limits, Place
from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.adaptation_footprint import AdaptationFootprint, adaptation_footprint
from martlet.compression.compressor import Placement
from martlet.compression.walk import Sample
from martlet.device.size import format_bytes
from martlet.engine.machine import capped, first_gpu, probe_gpu_state
from martlet.errors import CapacityError
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


def choose_adaptation_place(demand: Demand, limits: Limits) -> AdaptationPlace:
    """The first of GPU and processor that ``limits`` allow and that has the memory.

    A GPU computes in float32 where all of the model stays there, else in bfloat16 if it has it.

    Raises:
        CapacityError: none has; names what is needed and what may be used.
        UsageError: there is no GPU for "cuda".
    """
    gpu = first_gpu(limits.device)
    if gpu is not None:
        try:
            return _on_card(demand, torch.device("cuda", gpu.index), limits)
        except CapacityError:
            if limits.device == "cuda":
                raise
    needed = demand.footprint(torch.float32)
    available = limits.ram_bytes() - needed.running_bytes - needed.model_bytes
    levels = int(_USABLE * available)
    if levels < needed.smallest_levels_bytes:
        _refuse("main memory", needed.smallest_levels_bytes - levels, "--ram, or fewer --samples")
    return AdaptationPlace(
        Place(torch.device("cpu"), torch.float32), True, min(levels, needed.all_levels_bytes)
    )


def _on_card(demand: Demand, card: torch.device, limits: Limits) -> AdaptationPlace:
    state = probe_gpu_state(card)
    allowed = capped(state.available_bytes, limits.of("gpu_memory")) - state.context_bytes
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
    missing = needed.model_bytes - limits.ram_bytes()
    if missing > 0:
        _refuse("main memory", missing, "--ram, or fewer --samples")
    place = Place(card, dtype, allowed, state.context_bytes)
    return AdaptationPlace(place, False, min(levels, needed.all_levels_bytes))


def _refuse(what: str, missing_bytes: int, change: str) -> None:
    raise CapacityError(
        f"adapting this model needs {format_bytes(missing_bytes)} of {what} more than may be "
        f"used; take shorter --sample-tokens, or change {change}"
    )
