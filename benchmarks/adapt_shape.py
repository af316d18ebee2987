"""Times `martlet adapt` at the size of a published model, with random weights.

    python benchmarks/adapt_shape.py --shape cpm2-11b --gpu-memory 6GiB --ram 16GiB \
        --blocks 2 --iterations 100 [--out FILE]

Two measurements, each a row of JSON. "blocks": a model of the same widths with so many blocks a
stack has each of them trained by itself; seconds are for a block. "end-to-end": the model at its
full depth is trained for so many iterations; seconds are for an iteration, those that read the
float model and look at held-out samples apart. The float model is drawn block by block; the
compressed one lies in main memory, as it would in the page cache.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

import martlet
from martlet.api.adapting_place import AdaptationPlace, Demand, choose_adaptation_place
from martlet.api.compressing_place import Limits
from martlet.bench.random_source import RandomSource
from martlet.bench.record import checkout_commit
from martlet.bench.shapes import find_shape
from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.adaptation import adapt_blocks
from martlet.compression.adaptation_task import AdaptationTask
from martlet.compression.recipe import Recipe
from martlet.compression.requantize import in_formats
from martlet.compression.training_files import TrainingFiles
from martlet.compression.walk import Sample
from martlet.compression.work_folder import WorkFolder
from martlet.models.architecture import Architecture
from martlet.models.config import load_architecture


class Rounded:
    """The blocks of a source in the formats of a recipe, made at once and kept in main memory."""

    def __init__(self, architecture: Architecture, source: RandomSource, recipe: Recipe) -> None:
        specs = architecture.block_specs()
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._blocks = {}
        self.weights: Mapping[str, list[PlannedWeight]] = {}
        for spec in specs:
            formats = {
                tensor.name: recipe.format_of(spec.prefix + tensor.name, tensor, spec, specs)
                for tensor in spec.tensors
            }
            weights = in_formats(source.block(spec.name), formats, device)
            self._blocks[spec.name] = weights
            self.weights[spec.name] = [
                PlannedWeight(
                    tensor.name, tensor.shape, formats[tensor.name] or weights[tensor.name].dtype
                )
                for tensor in spec.tensors
            ]

    def block(self, name: str):
        return self._blocks[name]


class Clock:
    """Seconds of the parts of the work, from what progress says."""

    def __init__(self) -> None:
        self.first_tuning = self.last_tuning = 0.0
        self._started = time.perf_counter()
        self._shown = 0.0

    def __call__(self, done: int, total: int, what: str) -> None:
        now = time.perf_counter()
        if what.startswith("end to end"):
            self.first_tuning = self.first_tuning or now
            self.last_tuning = now
        if now - self._shown > 10:
            self._shown = now
            seconds = now - self._started
            print(f"{seconds:6.0f} s  {done:,}/{total:,}  {what}", file=sys.stderr, flush=True)


def shallow(config: Mapping[str, object], num_blocks: int) -> dict[str, object]:
    """The same widths with so many blocks a stack."""
    depths = ("num_layers", "num_decoder_layers", "num_hidden_layers", "n_layer")
    return {name: num_blocks if name in depths else value for name, value in config.items()}


def samples_of(architecture: Architecture, num_samples: int, tokens: int) -> list[Sample]:
    random = torch.Generator().manual_seed(0)

    def ids() -> tuple[int, ...]:
        drawn = torch.randint(0, architecture.vocab_size, (tokens,), generator=random)
        return tuple(drawn.tolist())

    return [Sample(ids(), ids() if architecture.has_encoder else ()) for _ in range(num_samples)]


def measure(
    arguments: argparse.Namespace, phase: str, config: Mapping[str, object], folder: Path
) -> dict[str, object]:
    options = martlet.AdaptationOptions(
        iterations=arguments.iterations if phase == "end-to-end" else 0,
        block_iterations=arguments.block_iterations if phase == "blocks" else 0,
        batch_size=arguments.batch_size,
        rows_at_once=arguments.rows_at_once,
        samples=arguments.samples,
        sample_tokens=arguments.sample_tokens,
    )
    architecture = load_architecture(config)
    started = time.perf_counter()
    dtype = torch.float16 if torch.cuda.is_available() else torch.float32
    teacher = RandomSource(architecture, "none", dtype)
    student = Rounded(architecture, teacher, Recipe.parse(arguments.format))
    drawn_seconds = time.perf_counter() - started
    samples = samples_of(architecture, arguments.samples, arguments.sample_tokens)
    demand = Demand(
        architecture, student.weights, samples, options.rows_at_once, options.batch_size
    )
    limits = Limits(arguments.gpu_memory, arguments.ram, arguments.device)
    place: AdaptationPlace = choose_adaptation_place(demand, limits)
    settings = options.settings(len(samples), place.max_trained_bytes)
    # Looks and saves as in a long training: they are timed apart, by what is left of the whole.
    settings = replace(
        settings, tuning=replace(settings.tuning, look_every=10**9, save_every=10**9)
    )
    clock = Clock()
    started = time.perf_counter()
    with (
        WorkFolder(folder / f"{phase}-{os.getpid()}", "cpm1", {"shape": config}) as work,
        place.held() as placement,
    ):
        task = AdaptationTask(
            architecture,
            student,
            teacher,
            samples,
            placement,
            settings,
            TrainingFiles(work),
            place.is_resident,
        )
        result = adapt_blocks(task, clock)
        work.remove()
        peak_gpu_bytes = place.place.peak_gpu_bytes()
    seconds = time.perf_counter() - started
    num_blocks = len(task.block_names)
    tuned = clock.last_tuning - clock.first_tuning
    return {
        "phase": phase,
        "blocks": num_blocks,
        "parameters": sum(
            weight.numel for weights in student.weights.values() for weight in weights
        ),
        "format": arguments.format,
        "samples": arguments.samples,
        "sample_tokens": arguments.sample_tokens,
        "batch_size": options.batch_size,
        "rows_at_once": options.rows_at_once,
        "iterations": result.iterations or options.block_iterations,
        "seconds": seconds,
        "seconds_per_block": seconds / num_blocks if phase == "blocks" else None,
        "seconds_per_iteration": tuned / (result.iterations - 1) if result.iterations > 1 else None,
        "drawing_seconds": drawn_seconds,
        "is_resident": place.is_resident,
        "dtype": str(placement.dtype).removeprefix("torch."),
        "max_trained_bytes": place.max_trained_bytes,
        "peak_gpu_process_bytes": peak_gpu_bytes,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "errors": [(block.before, block.after) for block in result.blocks],
        "loss_start": result.loss_start,
        "loss_end": result.loss_end,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="cpm2-11b")
    parser.add_argument("--format", default="int4-g64")
    parser.add_argument("--blocks", type=int, default=1, help="blocks a stack; 0 leaves them out")
    parser.add_argument("--block-iterations", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=100, help="0 leaves them out")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--sample-tokens", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rows-at-once", type=int, default=1)
    parser.add_argument("--gpu-memory")
    parser.add_argument("--ram")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--scratch", type=Path, help="folder for work; a temporary one by default")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    shape = find_shape(arguments.shape)
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as folder:
        for phase in ("blocks", "end-to-end"):
            if not (arguments.blocks if phase == "blocks" else arguments.iterations):
                continue
            config = dict(shape.config)
            if phase == "blocks":
                config = shallow(config, arguments.blocks)
            row = {
                "shape": shape.name,
                "device": arguments.device,
                "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                "gpu_memory": arguments.gpu_memory,
                "ram": arguments.ram,
                "torch": torch.__version__,
                "commit": checkout_commit(Path(martlet.__file__).parent),
                "command": "python " + " ".join(sys.argv),
                **measure(arguments, phase, config, Path(folder)),
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
