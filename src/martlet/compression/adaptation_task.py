"""What an adaptation is of: two models, samples, settings, and where work is kept meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from martlet.compression.block_training import BlockSettings
from martlet.compression.compressor import Placement
from martlet.compression.tuning import StateFile, TuningSettings
from martlet.compression.walk import Sample
from martlet.memory.executor import BlockSource
from martlet.models.architecture import FIXED, Architecture, BlockSpec
from martlet.quantization.scheme import StoredWeight

__all__ = [
    "HOST",
    "TRAINING_PASSES",
    "TUNING_PASSES",
    "AdaptationFiles",
    "AdaptationSettings",
    "AdaptationTask",
    "Progress",
    "Work",
]

HOST = torch.device("cpu")

TRAINING_PASSES, TUNING_PASSES = 3, 4
"""Passes of a batch through a block that an iteration takes: forward and back, a pass back being
two; end to end every block is computed once more on the way back."""

Progress = Callable[[int, int, str], None]
"""Called with (work done, work in all, what is being done)."""


@dataclass(frozen=True)
class AdaptationSettings:
    """What is trained, for how long and how fast.

    ``rows_at_once`` samples go through a block together, and make an iteration of a block's own
    training; ``tuning.batch_size`` make one from end to end. ``top_k`` tokens of each prediction of
    the float model are kept. ``cross_entropy`` is the share of the text's own next tokens in the
    loss from end to end.
    """

    block: BlockSettings
    tuning: TuningSettings
    num_held_out: int
    rows_at_once: int = 1
    top_k: int = 128
    cross_entropy: float = 0.0


class AdaptationFiles(Protocol):
    """Where trained blocks and unfinished training are kept."""

    def load_block(self, spec: BlockSpec) -> Mapping[str, StoredWeight] | None:
        """A block that was trained before."""
        ...

    def save_block(self, spec: BlockSpec, weights: Mapping[str, StoredWeight]) -> None:
        """Keep a block that is trained."""
        ...

    def state(self, name: str) -> StateFile:
        """The state of that name."""
        ...


@dataclass(frozen=True, eq=False)
class AdaptationTask:
    """A compressed model ``student`` and the float model ``teacher`` that it learns from.

    The last ``settings.num_held_out`` samples are never trained on. ``release`` is called when the
    weights of a block are no longer needed. With ``is_resident`` all of the student, and all hidden
    states, stay on the device.
    """

    architecture: Architecture
    student: BlockSource
    teacher: BlockSource
    samples: Sequence[Sample]
    placement: Placement
    settings: AdaptationSettings
    files: AdaptationFiles
    is_resident: bool = False
    release: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        num_trained = len(self.samples) - self.settings.num_held_out
        assert self.settings.num_held_out > 0
        assert self.settings.rows_at_once <= num_trained, "a batch of samples to train on"

    @property
    def kept_on(self) -> torch.device:
        """Where blocks and hidden states wait."""
        return self.placement.device if self.is_resident else HOST

    @property
    def block_names(self) -> list[str]:
        """All blocks but the weights of no layer."""
        return [spec.name for spec in self.architecture.block_specs() if spec.name != FIXED]

    @property
    def num_passes(self) -> int:
        """All work, as ``Work`` counts it."""
        settings = self.settings
        batches = -(-len(self.samples) // settings.rows_at_once)
        a_block = 2 * batches + TRAINING_PASSES * settings.block.iterations
        return len(self.block_names) * a_block + settings.tuning.iterations * self.tuning_passes

    @property
    def tuning_passes(self) -> int:
        """Those of one iteration from end to end."""
        batches = -(-self.settings.tuning.batch_size // self.settings.rows_at_once)
        return len(self.block_names) * TUNING_PASSES * batches


class Work:
    """How far an adaptation has come, in passes of a batch through a block."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.done = 0
        self._total = total
        self._progress = progress

    def add(self, passes: int, what: str) -> None:
        """Some more are done."""
        self.to(self.done + passes, what)

    def to(self, done: int, what: str) -> None:
        """So many are done by now."""
        self.done = done
        self._progress(min(done, self._total), self._total, what)

    def skip(self, passes: int) -> None:
        """What an earlier run has done; the time that is left goes by what this one does."""
        self._total -= passes
