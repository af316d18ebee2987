"""Lets a compressed model fit its precision: block by block first, then from end to end.

First every block learns to give what the float block gives, integers included. Then the integers
stay, and scales, zeros, norms and biases are trained with the whole model's loss against what the
float model finds probable. Whichever state is best on samples that no training sees is kept, the
one before all training included.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from martlet.compression.adaptation_task import HOST, AdaptationTask, Progress, Work
from martlet.compression.block_phase import BlockError, BlockPhase
from martlet.compression.compressor import NEXT_STEP
from martlet.compression.end_to_end import Student, held_out_loss
from martlet.compression.fitted import FittedBlock, Numbers
from martlet.compression.teacher import Targets
from martlet.compression.tuning import Look, Tuning, TuningResult
from martlet.memory.capacity import report_out_of_memory
from martlet.quantization.scheme import StoredWeight

__all__ = ["AdaptationResult", "adapt_blocks"]

_Blocks = Callable[[str], Mapping[str, StoredWeight]]


@dataclass(frozen=True, eq=False)
class AdaptationResult:
    """The adapted weights, and how it went.

    ``kept`` tells what the weights are: "start" where no training helped, "blocks" where only that
    of the blocks did, else "tuned". ``looks`` are those of the training from end to end.

    Units:
        loss_start, loss_blocks, loss_end: nats a token of held-out samples: as the model came, with
            trained blocks, and of what is kept.
    """

    kept: Literal["start", "blocks", "tuned"]
    loss_start: float
    loss_blocks: float
    loss_end: float
    blocks: tuple[BlockError, ...]
    looks: tuple[Look, ...]
    iterations: int
    _student: Student
    _numbers: Mapping[str, Numbers]

    def block(self, name: str) -> dict[str, StoredWeight]:
        """The weights of a block, on the host."""
        return self._student.blocks[name].settled(self._numbers[name])


def adapt_blocks(
    task: AdaptationTask, progress: Progress = lambda done, total, what: None
) -> AdaptationResult:
    """Both phases.

    Raises:
        CapacityError: memory ran out.
    """
    work = Work(task.num_passes, progress)
    phase = BlockPhase(task, work)
    targets = phase.run()
    with report_out_of_memory("adapting the model", NEXT_STEP):
        return _tune(task, work, phase, targets)


def _tune(
    task: AdaptationTask, work: Work, phase: BlockPhase, targets: Targets
) -> AdaptationResult:
    """Phase two, from the better of the model as it came and the one with trained blocks."""

    def trained(name: str) -> Mapping[str, StoredWeight]:
        return phase.trained[name] if name in phase.trained else task.student.block(name)

    start = blocks = _held_out(task, task.student.block, targets)
    source: _Blocks = task.student.block
    kept: Literal["start", "blocks", "tuned"] = "start"
    if phase.trained:
        blocks = _held_out(task, trained, targets)
        if blocks < start:
            source, kept = trained, "blocks"
    taken = _Taken(task, source)
    there = {name: block.to(task.kept_on) for name, block in taken.items()}
    numbers: dict[str, Numbers] = {name: block.start(task.kept_on) for name, block in there.items()}
    student = _student(task, there, numbers)
    result = _run(task, work, student, targets)
    # Where training did not help, what is kept are the numbers from before it.
    if result.loss_after < result.loss_before:
        kept = "tuned"
    return AdaptationResult(
        kept,
        start,
        blocks,
        min(result.loss_after, start, blocks),
        phase.errors,
        result.looks,
        result.iterations,
        student,
        result.numbers,
    )


def _run(task: AdaptationTask, work: Work, student: Student, targets: Targets) -> TuningResult:
    settings = task.settings
    tuning = Tuning(student, task.samples, targets, settings.num_held_out, settings.tuning)
    resumed = tuning.resume(task.files.state("tuning"))
    work.skip(resumed * task.tuning_passes)
    before = work.done

    def progress(done: int, loss: float) -> None:
        passes = (done - resumed) * task.tuning_passes
        work.to(before + passes, f"end to end, {done:,} iterations: loss {loss:.4f}")

    return tuning.run(progress)


def _held_out(task: AdaptationTask, source: _Blocks, targets: Targets) -> float:
    """The loss of the held-out samples; blocks are taken from their source as they are needed."""
    first = len(task.samples) - task.settings.num_held_out
    own = targets.of_samples(range(first, len(task.samples)), HOST)
    student = _student(task, _Taken(task, source), defaultdict(dict))
    return held_out_loss(student, task.samples[first:], own)


class _Taken(Mapping[str, FittedBlock]):
    """The blocks of a model, each made when it is asked for."""

    def __init__(self, task: AdaptationTask, source: _Blocks) -> None:
        self._names = [spec.name for spec in task.architecture.block_specs()]
        self._source = source

    def __getitem__(self, name: str) -> FittedBlock:
        return FittedBlock(self._source(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _student(
    task: AdaptationTask, blocks: Mapping[str, FittedBlock], numbers: Mapping[str, Numbers]
) -> Student:
    return Student(
        task.architecture,
        blocks,
        numbers,
        task.placement.device,
        task.placement.dtype,
        rows_at_once=task.settings.rows_at_once,
        cross_entropy=task.settings.cross_entropy,
        kept_on=task.kept_on,
    )
