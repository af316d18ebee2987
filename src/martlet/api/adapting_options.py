"""How long and how fast ``martlet.adapt`` trains."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from martlet.compression.adaptation_task import AdaptationSettings
from martlet.compression.block_training import BlockSettings
from martlet.compression.tuning import TuningSettings
from martlet.compression.walk import Sample
from martlet.errors import UsageError

__all__ = ["AdaptationOptions"]

_LOOKS = 20  # at the held-out samples, from end to end
_PATIENCE = 8
_SAVES = 20
_LEAST_SAMPLES = 4


@dataclass(frozen=True)
class AdaptationOptions:
    """What of a text is trained on, how long and how fast; all by keyword.

    Args:
        iterations: from end to end; 0 trains blocks alone.
        block_iterations: of each block by itself; 0 trains from end to end alone.
        learning_rate: relative change of scales, zeros, norms and biases in an iteration from end
            to end, at its highest.
        block_learning_rate: the same while a block is trained by itself.
        rounding_rate: how far an integer's level moves in an iteration of its block, in integer
            steps.
        batch_size: samples in an iteration from end to end.
        rows_at_once: samples that go through a block together; more are faster and take more
            memory.
        samples: pieces of the text.
        sample_tokens: tokens of each, at most.
        held_out: share of the samples that no training sees, by which the best state is chosen.
        top_k: tokens of each prediction of the teacher that are kept.
        cross_entropy: share of the text's own next tokens in the loss from end to end; the rest is
            the distance to the teacher.
        seed: decides which pieces of the text are taken, and their order.

    Raises:
        UsageError: a value is out of its range.
    """

    iterations: int = 2000
    block_iterations: int = 200
    learning_rate: float = 1e-3
    block_learning_rate: float = 1e-3
    rounding_rate: float = 0.01
    batch_size: int = 8
    rows_at_once: int = 4
    samples: int = 512
    sample_tokens: int = 512
    held_out: float = 0.125
    top_k: int = 128
    cross_entropy: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (
            ("iterations", 0, 1 << 24),
            ("block_iterations", 0, 1 << 24),
            ("batch_size", 1, 1 << 16),
            ("rows_at_once", 1, 1 << 16),
            ("samples", _LEAST_SAMPLES, 1 << 20),
            ("sample_tokens", 16, 1 << 16),
            ("top_k", 1, 1 << 16),
            ("seed", 0, (1 << 32) - 1),
        ):
            value = getattr(self, name)
            if type(value) is not int or not least <= value <= most:
                raise UsageError(f"{name} is {value!r:.40}; it must be from {least} to {most:,}")
        for name, highest in (
            ("learning_rate", 1.0),
            ("block_learning_rate", 1.0),
            ("rounding_rate", 1.0),
            ("held_out", 0.5),
            ("cross_entropy", 1.0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise UsageError(f"{name} is {value!r:.40}; it must be a number")
            if not (math.isfinite(value) and 0 <= value <= highest):
                raise UsageError(f"{name} is {value}; it must be from 0 to {highest:g}")
        if not self.held_out:
            raise UsageError("held_out is 0; some samples must be left to choose the best state by")

    def arranged(self, samples: Sequence[Sample]) -> tuple[Sample, ...]:
        """The samples shuffled, so that those at the end, which are held out, are from everywhere.

        Raises:
            UsageError: they are too few to hold any out.
        """
        if len(samples) < _LEAST_SAMPLES:
            raise UsageError(
                f"the training text gives {len(samples)} samples, {_LEAST_SAMPLES} are the least; "
                "give a longer text"
            )
        order = list(samples)
        random.Random(self.seed).shuffle(order)
        return tuple(order)

    def settings(self, num_samples: int, max_trained_bytes: int | None) -> AdaptationSettings:
        """The same in the words of the training."""
        num_held_out = max(1, min(num_samples // 2, round(num_samples * self.held_out)))
        return AdaptationSettings(
            BlockSettings(
                self.block_iterations,
                self.rounding_rate,
                self.block_learning_rate,
                self.seed,
                max_trained_bytes,
            ),
            TuningSettings(
                self.iterations,
                self.learning_rate,
                self.batch_size,
                look_every=max(1, self.iterations // _LOOKS),
                patience=_PATIENCE,
                save_every=max(1, self.iterations // _SAVES),
                seed=self.seed,
            ),
            num_held_out,
            min(self.rows_at_once, num_samples - num_held_out),
            self.top_k,
            self.cross_entropy,
        )
