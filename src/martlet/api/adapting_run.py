"""What ``martlet.adapt`` does with its arguments, step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from martlet import __version__
from martlet.api.adapting_options import AdaptationOptions
from martlet.api.adapting_place import AdaptationPlace
from martlet.api.calibrating import form_of
from martlet.api.compressing import quantize
from martlet.api.compressing_place import Limits
from martlet.api.opening import open_model
from martlet.checkpoint.planned import PlannedBlock
from martlet.checkpoint.writer import StoreWriter
from martlet.compression.adaptation import AdaptationResult, adapt_blocks
from martlet.compression.adaptation_task import AdaptationTask
from martlet.compression.training_files import TrainingFiles
from martlet.compression.walk import Sample
from martlet.compression.work_folder import WorkFolder
from martlet.engine.loading import OpenedModel
from martlet.engine.model_files import contents_like
from martlet.engine.sample_texts import sample_text
from martlet.engine.text_file import TextFile, read_text_file
from martlet.errors import UsageError

__all__ = ["AdaptationRun", "Progress"]

Progress = Callable[[int, int, str], None]
"""Called with (work done, work in all, what is being done)."""


@dataclass(frozen=True)
class AdaptationRun:
    """What is to be done; tells whether work that is there is part of it, and ends it."""

    model: OpenedModel
    teacher: OpenedModel
    format: str | None
    destination: Path
    options: AdaptationOptions
    text: TextFile
    samples: tuple[Sample, ...]

    @classmethod
    def open(
        cls,
        model: str | Path,
        teacher: str | Path | None,
        format: str | None,
        destination: Path,
        options: AdaptationOptions,
        data: Path,
    ) -> AdaptationRun:
        """Both models and the text, checked."""
        folder = open_model(model)
        is_float = folder.files.quantize == "none"
        if is_float and format is None:
            raise UsageError(
                f"{model} has float weights, there is nothing to adapt; give --format to round "
                "it first, or a model that martlet quantize has made"
            )
        if not is_float and (format is not None or teacher is None):
            raise UsageError(
                f"{model} has {folder.files.quantize} weights; give the float model that it was "
                "made of as --teacher, and no --format"
            )
        floats = folder if teacher is None else open_model(teacher)
        _check_pair(folder, floats)
        text = read_text_file(data, "the training text")
        return cls(
            folder, floats, format, destination, options, text, _samples(floats, text, options)
        )

    def fingerprint(self, device: str) -> dict[str, Any]:
        """All that decides about the result."""
        return {
            "version": __version__,
            "model": self.model.files.fingerprint(),
            "teacher": self.teacher.files.fingerprint(),
            "format": self.format,
            "text": self.text.sha256,
            "options": asdict(self.options),
            "device": device,
            "torch": torch.__version__,
        }

    def compressed(self, work: WorkFolder, limits: Limits) -> OpenedModel:
        """The model to adapt; a float one is rounded first."""
        if self.format is None:
            return self.model
        rounded = work.path / "rounded"
        if not rounded.is_dir():
            quantize(
                self.model.files.location,
                rounded,
                method="nearest",
                format=self.format,
                gpu_memory=limits.gpu_memory,
                ram=limits.ram,
                device=limits.device,
            )
        return open_model(rounded)

    def train(
        self,
        student: OpenedModel,
        place: AdaptationPlace,
        work: WorkFolder,
        progress: Progress | None,
    ) -> AdaptationResult:
        """The adapted weights."""
        settings = self.options.settings(len(self.samples), place.max_trained_bytes)

        def release() -> None:
            self.teacher.files.forget()
            student.files.forget()

        with place.held() as placement:
            task = AdaptationTask(
                student.architecture,
                student.stored_blocks(),
                self.teacher.stored_blocks(),
                self.samples,
                placement,
                settings,
                TrainingFiles(work),
                place.is_resident,
                release,
            )
            return adapt_blocks(task, progress or (lambda done, total, what: None))

    def write(self, student: OpenedModel, result: AdaptationResult, overwrite: bool) -> int:
        """The destination, in the formats of the student; bytes of its weights."""
        files = student.files
        blocks = tuple(
            PlannedBlock(spec.name, spec.prefix, files.block_weights(spec.name))
            for spec in student.architecture.block_specs()
        )
        account = {**files.compression, "adaptation": self._facts(result)}
        contents = contents_like(files, blocks, account)
        with StoreWriter(self.destination, contents, overwrite=overwrite) as writer:
            for block in blocks:
                writer.write_block(block, result.block(block.name))
        return writer.size_bytes

    def _facts(self, result: AdaptationResult) -> dict[str, Any]:
        """Where the weights come from, for people."""
        return {
            "kept": result.kept,
            "iterations": result.iterations,
            "block_iterations": self.options.block_iterations,
            "loss_before": result.loss_start,
            "loss_after": result.loss_end,
            "text": {"file": self.text.path.name, "sha256": self.text.sha256},
            "samples": len(self.samples),
            "sample_tokens": self.options.sample_tokens,
            "seed": self.options.seed,
            "martlet": __version__,
        }


def _check_pair(model: OpenedModel, teacher: OpenedModel) -> None:
    if teacher.files.quantize != "none":
        raise UsageError(
            f"{teacher.files.location} has {teacher.files.quantize} weights; the teacher must be a "
            "float model"
        )
    own, theirs = model.architecture.block_specs(), teacher.architecture.block_specs()
    if own != theirs or model.files.family != teacher.files.family:
        raise UsageError(
            f"{model.files.location} ({model.files.family}, {len(own)} blocks) and "
            f"{teacher.files.location} ({teacher.files.family}, {len(theirs)} blocks) have not the "
            "same tensors; the teacher must be the float model that the other was made of"
        )


def _samples(folder: OpenedModel, text: TextFile, options: AdaptationOptions) -> tuple[Sample, ...]:
    samples = sample_text(
        form_of(folder),
        text.text,
        num_samples=options.samples,
        sample_tokens=options.sample_tokens,
        seed=options.seed,
    )
    return options.arranged(samples)
