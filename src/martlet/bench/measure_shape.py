"""The speed of a shape with random weights, beside what the machine could do in the same run."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from martlet.bench.ceilings import measure_ceilings
from martlet.bench.limits import Ceilings, step_bytes
from martlet.bench.opening import Setting, open_shape
from martlet.bench.passes import Passes, PassTimes, Workload
from martlet.bench.record import Record, checkout_commit
from martlet.bench.shapes import Shape
from martlet.device.gpu_memory import GpuMemoryWatch, nvml_reader
from martlet.device.probe import peak_rss_bytes, probe_cpu
from martlet.kernels.cuda.compiler import compile_seconds
from martlet.memory.executor import Executor
from martlet.memory.plan import Plan
from martlet.models.architecture import Architecture

__all__ = ["PROTOCOLS", "default_protocol", "measure_shape", "workload_of"]

PROTOCOLS: Mapping[str, tuple[int, int]] = {"bminf": (256, 256), "prefill512": (512, 129)}
"""Tokens of the prompt and of the output. bminf is what BMInf's authors measured CPM-2 by: 256
tokens encoded, 255 decode steps. prefill512: 512 tokens read, 128 decode steps."""

# Enough to load and capture everything that later steps use.
_WARM_UP_STEPS = 8


def default_protocol(shape: Shape) -> str:
    """The protocol that a shape is measured by where none is asked for."""
    return "bminf" if shape.config.get("model_type") in ("t5", "mt5") else "prefill512"


def workload_of(
    protocol: str,
    prompt_tokens: int | None,
    output_tokens: int | None,
    repetitions: int,
    batch: int,
) -> Workload:
    """The workload of a protocol, with other lengths where some are given."""
    usual_prompt, usual_output = PROTOCOLS[protocol]
    return Workload(
        prompt_tokens or usual_prompt, output_tokens or usual_output, repetitions, batch
    )


@dataclass(frozen=True)
class _Measured:
    architecture: Architecture
    plan: Plan
    device: torch.device
    dtype: torch.dtype
    times: PassTimes
    load_seconds: float
    ceilings: Ceilings
    peak_gpu_bytes: int | None


def measure_shape(
    shape: Shape,
    setting: Setting,
    workload: Workload,
    protocol: str,
    command: str,
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Make random weights, time generations, then measure the machine's own limits.

    ``protocol`` and ``command`` are recorded; the latter is what repeats the measurement.
    ``progress`` is called with (runs done, runs). For the GPU memory of the whole process to be
    seen, it may have no CUDA context yet.

    Raises:
        UsageError, CapacityError, ModelFileError: as ``open_shape``.
    """
    reader = nvml_reader() if setting.device != "cpu" else None
    with GpuMemoryWatch(reader) as watch:
        start = time.perf_counter()
        architecture, executor = open_shape(shape, setting, workload)
        load_seconds = time.perf_counter() - start
        times = _time_all(architecture, executor, workload, progress)
    plan, device, dtype = executor.plan, executor.device, executor.dtype
    del executor  # the ceilings are of an empty machine, and need room
    measured = _Measured(
        architecture,
        plan,
        device,
        dtype,
        times,
        load_seconds,
        measure_ceilings(device),
        watch.peak_bytes if device.type == "cuda" else None,
    )
    return Record(
        shape=shape.name,
        command=command,
        protocol=protocol,
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        repetitions=workload.repetitions,
        batch=workload.batch,
        gpu_memory_budget_bytes=setting.gpu_memory_bytes,
        **_machine(measured),
        **_speeds(measured, workload),
        **_against_limits(measured, setting, workload),
    )


def _time_all(
    architecture: Architecture,
    executor: Executor,
    workload: Workload,
    progress: Callable[[int, int], None] | None,
) -> PassTimes:
    """Medians over the repetitions, after a shorter run that is not counted."""
    passes = Passes(architecture, executor, workload)
    runs = []
    for number in range(workload.repetitions + 1):
        steps = workload.decode_steps if number else min(_WARM_UP_STEPS, workload.decode_steps)
        times = passes.time(steps)
        if number:
            runs.append(times)
        if progress:
            progress(number + 1, workload.repetitions + 1)
    return PassTimes(
        encode=statistics.median(run.encode for run in runs),
        prefill=statistics.median(run.prefill for run in runs),
        step=statistics.median(run.step for run in runs),
    )


def _machine(measured: _Measured) -> dict[str, Any]:
    device, plan = measured.device, measured.plan
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else probe_cpu().name,
        "torch": torch.__version__,
        "commit": checkout_commit(Path(__file__).parents[1]),
        "date": datetime.date.today().isoformat(),
        "num_threads": plan.num_threads,
        "decode_threads": plan.decode_threads,
        "kv_cache": plan.demand.kv_cache,
        "peer": None,
    }


def _speeds(measured: _Measured, workload: Workload) -> dict[str, Any]:
    times = measured.times
    first_token_seconds = times.encode + times.prefill
    return {
        "encode_seconds": times.encode if measured.architecture.has_encoder else None,
        "prefill_seconds": times.prefill,
        "time_to_first_token_seconds": first_token_seconds,
        "prefill_tokens_per_second": (
            workload.batch * workload.prompt_tokens / first_token_seconds
        ),
        "decode_tokens_per_second": workload.batch / times.step,
        "load_seconds": measured.load_seconds,
        "kernel_compile_seconds": compile_seconds() if measured.device.type == "cuda" else None,
        "peak_process_bytes": peak_rss_bytes(),
        "peak_gpu_process_bytes": measured.peak_gpu_bytes,
    }


def _against_limits(measured: _Measured, setting: Setting, workload: Workload) -> dict[str, Any]:
    plan, dtype, ceilings = measured.plan, measured.dtype, measured.ceilings
    step = step_bytes(measured.architecture, plan, setting.quantize, dtype.itemsize)
    num_blocks = measured.architecture.num_blocks("decoder")
    num_streamed = len(plan.streamed("decode"))
    return {
        "quantize": setting.form(dtype),
        "weight_bytes_per_token": step.weights,
        "streamed_bytes_per_token": step.streamed,
        "copy_ceiling_bytes_per_second": ceilings.memory_bytes_per_second,
        "pcie_bytes_per_second": ceilings.pcie_bytes_per_second,
        "matrix_flop_per_second": ceilings.matrix_flop_per_second,
        "share_of_limit": step.limit_seconds(ceilings) / measured.times.step,
        # Predictions are of one sequence.
        "predicted_seconds_per_token": plan.seconds_per_token if workload.batch == 1 else None,
        "resident_blocks": num_blocks - num_streamed,
        "streamed_blocks": num_streamed,
    }
