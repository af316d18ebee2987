"""Letting a compressed model fit its precision: ``martlet.adapt``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from martlet.api.adapting_options import AdaptationOptions
from martlet.api.adapting_place import AdaptationPlace, Demand, choose_adaptation_place
from martlet.api.adapting_run import AdaptationRun, Progress
from martlet.api.compressing_place import Limits
from martlet.api.report_file import check_folder_of, write_report
from martlet.checkpoint.writer import check_destination
from martlet.compression.adaptation import AdaptationResult
from martlet.compression.block_phase import BlockError
from martlet.compression.tuning import Look
from martlet.compression.work_folder import WorkFolder
from martlet.device.probe import peak_rss_bytes

__all__ = ["AdaptationReport", "adapt"]


@dataclass(frozen=True)
class AdaptationReport:
    """What an adaptation did.

    ``kept`` is "tuned", or "blocks" where training from end to end did not help, or "start" where
    nothing did. ``blocks`` has the errors of the blocks before and after their own training,
    ``looks`` the losses seen while the model was trained from end to end. Peaks are of the whole
    process; ``peak_gpu_bytes`` is None where no GPU was used or none can be measured.

    Units:
        loss_start, loss_blocks, loss_end: nats a token of held-out samples: of the model as it
            came, with trained blocks, and of what was kept.
    """

    path: Path
    family: str
    kept: str
    loss_start: float
    loss_blocks: float
    loss_end: float
    blocks: tuple[BlockError, ...]
    looks: tuple[Look, ...]
    iterations: int
    num_samples: int
    num_tokens: int
    nbytes: int
    device: str
    dtype: str
    is_resident: bool
    options: Mapping[str, object]
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {**asdict(self), "path": str(self.path)}


def adapt(  # noqa: PLR0913  (the options of one command, all by keyword)
    model: str | Path,
    dst: str | Path,
    *,
    teacher: str | Path | None = None,
    data: str | Path,
    format: str | None = None,
    options: AdaptationOptions | None = None,
    gpu_memory: str | int | None = None,
    ram: str | int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    report: str | Path | None = None,
    progress: Progress | None = None,
) -> AdaptationReport:
    """Train what a compressed model has lost back into it, and write the result to ``dst``.

    Work that was interrupted goes on when it is started again with the same arguments: trained
    blocks and the state of training are kept beside ``dst`` until the end. ``dst`` appears whole or
    not at all. On held-out samples the result is never worse than ``model``.

    Args:
        model: the compressed model; or a float model, together with ``format``.
        dst: the new model folder, of the same formats as the compressed model.
        teacher: the float model that the compressed one was made of; where ``model`` is a float
            model, that one.
        data: a UTF-8 text like those that the model is for.
        format: rounds a float ``model`` to the nearest integers of this format first.
        options: how long and how fast to train; see there for the defaults.
        gpu_memory: at most so much memory of the GPU, as in "6GiB"; None = what is free.
        ram: at most so much main memory; None = what is available.
        device: "auto", "cuda" or "cpu".
        overwrite: replace ``dst`` if it is a model folder.
        report: file to write the report to, as JSON.
        progress: called as the work goes on.

    Raises:
        UsageError: an argument is not valid, or the two models do not belong together.
        ModelNotFoundError: there is no such model.
        ModelFileError: its files are damaged.
        CapacityError: it does not fit into memory.
        DiskFullError: the result does not fit on the disk.
    """
    started = time.perf_counter()
    dst = Path(dst)
    options = options or AdaptationOptions()
    limits = Limits(gpu_memory, ram, device)
    check_destination(dst.absolute(), overwrite=overwrite)
    check_folder_of(report)
    run = AdaptationRun.open(model, teacher, format, dst, options, Path(data))
    with WorkFolder(dst, run.teacher.files.family, run.fingerprint(device)) as work:
        student = run.compressed(work, limits)
        weights = {name: student.files.block_weights(name) for name in student.files.block_names}
        demand = Demand(
            student.architecture, weights, run.samples, options.rows_at_once, options.batch_size
        )
        place = choose_adaptation_place(demand, limits)
        result = run.train(student, place, work, progress)
        nbytes = run.write(student, result, overwrite)
        work.remove()
    whole = _report(run, place, result, nbytes, time.perf_counter() - started)
    write_report(report, whole.to_json())
    return whole


def _report(
    run: AdaptationRun,
    place: AdaptationPlace,
    result: AdaptationResult,
    nbytes: int,
    seconds: float,
) -> AdaptationReport:
    return AdaptationReport(
        path=run.destination,
        family=run.teacher.files.family,
        kept=result.kept,
        loss_start=result.loss_start,
        loss_blocks=result.loss_blocks,
        loss_end=result.loss_end,
        blocks=result.blocks,
        looks=result.looks,
        iterations=result.iterations,
        num_samples=len(run.samples),
        num_tokens=sum(len(s.decoder_ids) + len(s.encoder_ids) for s in run.samples),
        nbytes=nbytes,
        device=str(place.place.device),
        dtype=str(place.place.dtype).removeprefix("torch."),
        is_resident=place.is_resident,
        options=asdict(run.options),
        seconds=seconds,
        peak_rss_bytes=peak_rss_bytes(),
        peak_gpu_bytes=place.place.peak_gpu_bytes(),
    )
