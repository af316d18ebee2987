"""The first phase of an adaptation: every block learns to give what the float block gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from martlet.compression.adaptation_task import TRAINING_PASSES, AdaptationTask, Work
from martlet.compression.block_training import BlockTask, train_block
from martlet.compression.compressor import NEXT_STEP
from martlet.compression.latents import aligned
from martlet.compression.teacher import Targets, measure_targets
from martlet.compression.walk import Walk
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import BlockSource
from martlet.models.architecture import FIXED, Stack, own_head_of, stacks_of
from martlet.quantization.scheme import StoredWeight

__all__ = ["BlockError", "BlockPhase"]


@dataclass(frozen=True)
class BlockError:
    """How far a block's outputs are from those of the float block, before and after training.

    Units:
        before, after: mean squared distance on held-out samples over the mean square of the float
            block's outputs.
    """

    name: str
    before: float
    after: float


class BlockPhase:
    """Trains the blocks in their order, each with the inputs that the trained ones before it give.

    Blocks that were trained before are taken as they are. On the way the float model's predictions
    are measured.
    """

    def __init__(self, task: AdaptationTask, work: Work) -> None:
        self._task, self._work = task, work
        self._specs = {spec.name: spec for spec in task.architecture.block_specs()}
        self._iterations = task.settings.block.iterations
        self._file = task.files.state("blocks")
        state: dict[str, Any] = self._file.load() or {"errors": {}, "targets": None}
        self._errors: dict[str, tuple[float, float]] = state["errors"]
        self._targets: dict[str, Tensor] | None = state["targets"]
        self.trained: dict[str, Mapping[str, StoredWeight]] = {}
        """The blocks that were trained, on the host."""

    @property
    def errors(self) -> tuple[BlockError, ...]:
        """Of the blocks that were trained."""
        return tuple(BlockError(name, *pair) for name, pair in self._errors.items())

    def run(self) -> Targets:
        """Train all blocks; what the float model finds probable in all samples.

        Raises:
            CapacityError: memory ran out.
        """
        if self._targets is not None and self._load_all():
            batches = -(-len(self._task.samples) // self._task.settings.rows_at_once)
            self._work.skip(len(self._task.block_names) * (2 * batches + self._passes))
            return Targets.from_state(self._targets)
        task = self._task
        own, theirs = self._walk(), self._walk()
        for stack in stacks_of(task.architecture):
            own.enter(self._fixed(task.student), stack)
            theirs.enter(self._fixed(task.teacher), stack)
            for index in range(task.architecture.num_blocks(stack)):
                with report_out_of_memory(f"adapting {stack}.{index}", NEXT_STEP):
                    self._block(own, theirs, stack, index)
            if stack == "encoder":
                own.leave(self._fixed(task.student), stack)
                theirs.leave(self._fixed(task.teacher), stack)
        with report_out_of_memory("measuring the float model", NEXT_STEP):
            fixed = self._task.placement.dense(task.teacher.block(FIXED))
            targets = measure_targets(theirs, fixed, task.settings.top_k)
        self._targets = targets.state()
        self._save()
        return targets

    @property
    def _passes(self) -> int:
        return TRAINING_PASSES * self._iterations

    def _save(self) -> None:
        self._file.save({"errors": self._errors, "targets": self._targets})

    def _load_all(self) -> bool:
        """Whether all blocks were trained before; then they are there."""
        for name in self._task.block_names if self._iterations else ():
            if not self._load(name):
                return False
        return True

    def _load(self, name: str) -> bool:
        weights = self._task.files.load_block(self._specs[name])
        if weights is None or name not in self._errors:
            return False
        self.trained[name] = weights
        return True

    def _block(self, own: Walk, theirs: Walk, stack: Stack, index: int) -> None:
        """Both models' hidden states through a block; the student's after it was trained."""
        name = f"{stack}.{index}"
        targets = theirs.run(
            stack, index, self._task.placement.dense(self._task.teacher.block(name))
        )
        self._work.add(len(own.batches), name)
        if self._iterations:
            if self._load(name):
                self._work.skip(self._passes)
            else:
                self._train(own, stack, index, targets)
            own.run(stack, index, self._task.placement.dense(self.trained[name]))
        self._work.add(len(own.batches), name)
        self._task.release()

    def _train(self, walk: Walk, stack: Stack, index: int, targets: Sequence[Tensor]) -> None:
        name = f"{stack}.{index}"
        weights = self._task.student.block(name)
        floats = self._task.teacher.block(name)
        latents = {
            key: aligned(_float(floats[key]), weight, self._task.placement.device)
            for key, weight in weights.items()
            if not isinstance(weight, Tensor)
        }
        num_held_out = self._num_held_out(len(walk.batches))
        block = BlockTask(walk, stack, index, weights, latents, targets, num_held_out)
        before = self._work.done

        def progress(done: int, loss: float) -> None:
            self._work.to(before + TRAINING_PASSES * done, f"{name}: error {loss:.2e}")

        result = train_block(block, self._task.settings.block, progress)
        self._work.to(before + self._passes, name)
        self._errors[name] = result.error_before, result.error_after
        self._save()
        self._task.files.save_block(self._specs[name], result.weights)
        # As it is read from there, so that it takes no memory for good.
        self.trained[name] = self._task.files.load_block(self._specs[name]) or result.weights

    def _num_held_out(self, num_batches: int) -> int:
        """The batches with a sample that is held out."""
        num_trained = len(self._task.samples) - self._task.settings.num_held_out
        return num_batches - num_trained // self._task.settings.rows_at_once

    def _walk(self) -> Walk:
        task = self._task
        return Walk(
            task.architecture,
            task.samples,
            task.placement.device,
            task.placement.dtype,
            task.settings.rows_at_once,
            kept_on=task.kept_on,
        )

    def _fixed(self, source: BlockSource) -> dict[str, Tensor]:
        """The weights of no layer on the device, without an output matrix of its own."""
        own_head = own_head_of(self._task.architecture)
        weights = source.block(FIXED)
        return self._task.placement.dense(
            {name: weight for name, weight in weights.items() if name != own_head}
        )


def _float(weight: StoredWeight) -> Tensor:
    assert isinstance(weight, Tensor), "the teacher's weights are floats"
    return weight
