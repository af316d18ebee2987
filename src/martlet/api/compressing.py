"""From a float model folder to one of integers: ``martlet.quantize``."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from martlet import __version__
from martlet.api.calibrating import Calibration, read_calibration
from martlet.api.compressing_place import Limits, Place, choose_place
from martlet.api.opening import open_model
from martlet.api.report_file import check_folder_of, write_report
from martlet.checkpoint.planned import PlannedBlock
from martlet.checkpoint.writer import StoreWriter, check_destination
from martlet.compression.compress_block import LayerReport, Method
from martlet.compression.compressor import CompressedBlock, Compressor, Placement
from martlet.compression.error_plot import check_plot, draw_errors
from martlet.compression.recipe import Recipe, bits_per_weight
from martlet.compression.work_folder import WorkFolder
from martlet.device.probe import peak_rss_bytes
from martlet.engine.loading import OpenedModel
from martlet.engine.model_files import contents_like
from martlet.errors import UsageError
from martlet.models.architecture import BlockSpec

__all__ = ["CompressionReport", "quantize"]

Progress = Callable[[int, int, str], None]
"""Called with (weights done, weights in all, what has happened) after each block."""


@dataclass(frozen=True)
class CompressionReport:
    """What a compression did, layer by layer.

    ``blocks`` has, by name, the relative error of the block's outputs on the inputs that it got
    (None without calibration). ``resumed_blocks`` were finished by an earlier run. Peaks are of the
    whole process; ``peak_gpu_bytes`` is None where no GPU was used or none can be measured.
    """

    path: Path
    family: str
    method: str
    recipe: Mapping[str, object]
    bits_per_weight: float
    nbytes: int
    num_samples: int
    num_tokens: int
    device: str
    layers: tuple[LayerReport, ...]
    blocks: Mapping[str, float | None]
    resumed_blocks: int
    seconds: float
    peak_rss_bytes: int
    peak_gpu_bytes: int | None

    def to_json(self) -> dict[str, Any]:
        """The same as JSON has it."""
        return {**asdict(self), "path": str(self.path)}


def quantize(  # noqa: PLR0913  (the options of one command, all by keyword)
    src: str | Path,
    dst: str | Path,
    *,
    method: str | None = None,
    format: str | None = None,
    head: str | None = None,
    embedding: str | None = None,
    edges: str | None = None,
    rules: Iterable[str] = (),
    calibration: str | Path | None = None,
    samples: int = 128,
    sample_tokens: int = 512,
    seed: int = 0,
    gpu_memory: str | int | None = None,
    ram: str | int | None = None,
    device: str = "auto",
    overwrite: bool = False,
    report: str | Path | None = None,
    plot: str | Path | None = None,
    progress: Progress | None = None,
) -> CompressionReport:
    """Write the float model ``src`` to ``dst`` with its matrices as integers, block by block.

    Work that was interrupted goes on when it is started again with the same arguments: finished
    blocks are kept beside ``dst`` until the end. ``dst`` appears whole or not at all.

    Args:
        src: a model folder with float weights, or the name of one.
        dst: the new model folder.
        method: "nearest" rounds each weight to the nearest integer under searched ranges; "gptq"
            lets integers make up for each other's errors; "scaled" scales input channels by what
            comes in; "scaled+gptq" does both. All but "nearest" need ``calibration``. None is
            "gptq" with it and "nearest" without.
        format: of all matrices, as "int4-g64"; ``head``, ``embedding`` and ``edges`` (the first and
            last block of each stack) have it where nothing else is said. None is "int4-g64" with
            ``calibration`` and without it "int8", as models of floats are loaded.
        head: format of the output matrix.
        embedding: format of the token table.
        edges: format of the first and the last block of each stack.
        rules: "PATTERN=FORMAT" for matrices by name; "none" leaves them float.
        calibration: a UTF-8 text like those that the model is for.
        samples: pieces of it that are looked at.
        sample_tokens: tokens of each, at most.
        seed: where the pieces are taken.
        gpu_memory: at most so much memory of the GPU, as in "6GiB"; None = what is free.
        ram: at most so much main memory; None = what is available.
        device: "auto", "cuda" or "cpu".
        overwrite: replace ``dst`` if it is a model folder.
        report: file to write the report to, as JSON.
        plot: file to draw the errors of all layers to, .svg or .png; needs the extra "plot".
        progress: called after each block.

    Raises:
        UsageError: an argument is not valid, or ``src`` has no float weights.
        ModelNotFoundError: there is no such model.
        ModelFileError: its files are damaged or hold numbers that are none.
        CapacityError: it does not fit into memory, found before the work starts.
        DiskFullError: the result does not fit on the disk.
    """
    started = time.perf_counter()
    dst = Path(dst)
    usual = ("nearest", "int8") if calibration is None else ("gptq", "int4-g64")
    method, format = method or usual[0], format or usual[1]
    chosen = Method(method)
    recipe = Recipe.parse(format, head=head, embedding=embedding, edges=edges, rules=rules)
    limits = Limits(gpu_memory, ram, device)
    check_destination(dst.absolute(), overwrite=overwrite)
    check_folder_of(report)
    check_folder_of(plot)
    if plot is not None:
        check_plot(Path(plot))
    folder = _float_folder(src)
    text = read_calibration(folder, calibration, samples, sample_tokens, seed)
    place = choose_place(folder.architecture, folder.compute_dtype, text.samples, chosen, limits)
    run = _Run(folder, dst, recipe, chosen, text, place)
    with place.held() as placement:
        compressor = run.compressor(placement)
        with WorkFolder(dst, folder.files.family, run.fingerprint()) as work:
            done = _Done(work, progress)
            done.run(compressor)
            nbytes = run.assemble(work, done, overwrite)
            work.remove()
        result = run.report(done, nbytes, time.perf_counter() - started)
    write_report(report, result.to_json())
    if plot is not None:
        draw_errors(result.layers, f"{dst.name}: {method}, {format}", Path(plot))
    return result


@dataclass(frozen=True)
class _Run:
    """What is to be done; tells whether work that is there is part of it, and ends it."""

    folder: OpenedModel
    destination: Path
    recipe: Recipe
    method: Method
    calibration: Calibration
    place: Place

    def fingerprint(self) -> dict[str, Any]:
        """All that decides about a single bit of the result."""
        return {
            "version": __version__,
            "source": self.folder.files.fingerprint(),
            "recipe": self.recipe.to_json(),
            "method": asdict(self.method),
            "calibration": self.calibration.facts(),
            "device": self.place.device.type,
            "torch": torch.__version__,
        }

    def compressor(self, placement: Placement) -> Compressor:
        """What does the work."""
        return Compressor(
            self.folder.architecture,
            self.folder.stored_blocks(),
            self.recipe,
            self.method,
            self.calibration.samples,
            placement,
            self.folder.files.forget,
        )

    def assemble(self, work: WorkFolder, done: _Done, overwrite: bool) -> int:
        """Write the destination from the finished blocks; bytes of its weights."""
        blocks = tuple(done.planned[spec.name] for spec in self.folder.architecture.block_specs())
        account = {
            "method": self.method.name,
            "recipe": self.recipe.to_json(),
            "calibration": self.calibration.facts(),
            "martlet": __version__,
        }
        contents = contents_like(self.folder.files, blocks, account)
        with StoreWriter(self.destination, contents, overwrite=overwrite) as writer:
            for block in blocks:
                writer.write_block(block, work.weights(block.name))
        return writer.size_bytes

    def report(self, done: _Done, nbytes: int, seconds: float) -> CompressionReport:
        """What was done."""
        return CompressionReport(
            path=self.destination,
            family=self.folder.files.family,
            method=self.method.name,
            recipe=self.recipe.to_json(),
            bits_per_weight=done.bits_per_weight(),
            nbytes=nbytes,
            num_samples=len(self.calibration.samples),
            num_tokens=self.calibration.num_tokens,
            device=str(self.place.device),
            layers=tuple(done.layers()),
            blocks=done.errors,
            resumed_blocks=done.num_resumed,
            seconds=seconds,
            peak_rss_bytes=peak_rss_bytes(),
            peak_gpu_bytes=self.place.peak_gpu_bytes(),
        )


class _Done:
    """The blocks as they get done; their weights go to the work folder, and out of memory."""

    def __init__(self, work: WorkFolder, progress: Progress | None) -> None:
        self.planned: dict[str, PlannedBlock] = {}
        self.errors: dict[str, float | None] = {}
        self.num_resumed = 0
        self._layers: dict[str, tuple[LayerReport, ...]] = {}
        self._work = work
        self._progress = progress or (lambda *_: None)

    def run(self, compressor: Compressor) -> None:
        """Do what is left to do."""
        specs = {spec.name: spec for spec in compressor.architecture.block_specs()}
        total = sum(map(_num_weights, specs.values()))
        if self._work.has_discarded:
            self._progress(0, total, "other options or other weights: finished blocks are dropped")
        resumed: set[str] = set()

        def finished(name: str) -> CompressedBlock | None:
            block = self._work.load(specs[name])
            if block is not None:
                resumed.add(name)
            return block

        num_done = 0
        for block in compressor.blocks(finished):
            name = block.spec.name
            if name not in resumed:
                self._work.save(block)
            self.planned[name], self.errors[name] = block.planned, block.output_error
            self._layers[name] = block.layers
            num_done += _num_weights(block.spec)
            self._progress(num_done, total, _line(block, name in resumed))
        self.num_resumed = len(resumed)

    def layers(self) -> Iterator[LayerReport]:
        """The reports of all layers, in the order of the work."""
        for layers in self._layers.values():
            yield from layers

    def bits_per_weight(self) -> float:
        """Of the whole model, floats included."""
        return bits_per_weight(w for block in self.planned.values() for w in block.weights)


def _num_weights(spec: BlockSpec) -> int:
    """Weights that take time: tables are rounded to nearest, which is fast."""
    return sum(math.prod(t.shape) // (1 if t.kind == "linear" else 10) for t in spec.tensors)


def _line(block: CompressedBlock, is_resumed: bool) -> str:
    if is_resumed:
        return f"{block.spec.name}: done before"
    before = sum(layer.error_before for layer in block.layers) / max(1, len(block.layers))
    after = sum(layer.error_after for layer in block.layers) / max(1, len(block.layers))
    return (
        f"{block.spec.name}: mean error of a layer {before:.2%} -> {after:.2%}, "
        f"{block.seconds:.1f} s"
    )


def _float_folder(src: str | Path) -> OpenedModel:
    folder = open_model(src)
    if folder.files.quantize != "none":
        raise UsageError(
            f"{src} holds {folder.files.quantize} weights already; compression starts from float "
            "weights, and martlet convert SRC DST writes these as they are, or narrower"
        )
    return folder
