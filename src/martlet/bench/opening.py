"""A model of random weights, made for this machine as a model folder would be loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from martlet.bench.limits import tensor_bytes
from martlet.bench.passes import Workload
from martlet.bench.random_source import RandomSource
from martlet.bench.shapes import Shape
from martlet.device.probe import Gpu, probe_ram
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.demand import Lengths, estimate_batch_demand, estimate_demand
from martlet.engine.load_options import parse_quantize
from martlet.engine.machine import (
    capped,
    compute_dtype,
    first_gpu,
    measured_bandwidth,
    probe_gpu_state,
)
from martlet.engine.parts import lay_out_parts, work_of
from martlet.errors import CapacityError, UsageError
from martlet.memory.executor import Executor, ResidentExecutor
from martlet.memory.plan import BlockSize, Budget, Demand, make_plan
from martlet.memory.streamed import load_streamed
from martlet.models.architecture import Architecture
from martlet.models.config import load_architecture
from martlet.quantization.formats import WeightFormat
from martlet.quantization.kv_form import KVForm

__all__ = ["Setting", "open_shape", "open_shape_for_batch"]


@dataclass(frozen=True)
class Setting:
    """Where random weights may live and in what form; None leaves a limit to the machine.

    Raises:
        UsageError: ``quantize`` is neither "none" nor the name of a format.
    """

    quantize: str = "int8"
    device: str = "auto"
    gpu_memory_bytes: int | None = None
    ram_bytes: int | None = None
    num_threads: int | None = None
    seed: int = 0
    kv_cache: KVForm = "none"

    def __post_init__(self) -> None:
        parse_quantize(self.quantize)

    @property
    def format(self) -> WeightFormat | None:
        """What matrices are; None is floats."""
        return parse_quantize(self.quantize)

    @property
    def has_int4(self) -> bool:
        """Whether matrices have 4 bits."""
        return self.format is not None and self.format.bits == 4

    def form(self, dtype: torch.dtype) -> str:
        """What records call it: the format's full name, or the type of floats."""
        return self.format.name if self.format else str(dtype).removeprefix("torch.")


def open_shape(shape: Shape, setting: Setting, workload: Workload) -> tuple[Architecture, Executor]:
    """The architecture of a shape and random weights for it, planned for one workload.

    Raises:
        CapacityError: weights, cache and workspace do not fit.
        UsageError: device "cuda" without a GPU, or more tokens than the model has positions.
        ModelFileError: the shape's config.json is not supported.
    """
    architecture = load_architecture(shape.config)
    _check_length(architecture, workload)
    lengths = _lengths(architecture, workload)

    def demand(dtype: torch.dtype, capability: tuple[int, int] | None) -> Demand:
        return estimate_demand(architecture, lengths, dtype, capability, setting.kv_cache)

    return _open(architecture, shape.family, setting, _Needs(demand, workload.prompt_tokens))


def open_shape_for_batch(
    shape: Shape, setting: Setting, limits: BatchLimits
) -> tuple[Architecture, Executor]:
    """The same, planned for the texts of a batch.

    Raises:
        CapacityError, UsageError, ModelFileError: as ``open_shape``.
    """
    architecture = load_architecture(shape.config)
    positions = architecture.max_positions
    if positions is not None and limits.slot_tokens > positions:
        raise UsageError(
            f"a slot has {limits.slot_tokens:,} tokens and the shape {positions:,} positions; "
            "use less"
        )

    def demand(dtype: torch.dtype, capability: tuple[int, int] | None) -> Demand:
        return estimate_batch_demand(architecture, limits, dtype, capability, setting.kv_cache)

    usual_tokens = limits.encoder_tokens or limits.slot_tokens
    return _open(architecture, shape.family, setting, _Needs(demand, usual_tokens))


@dataclass(frozen=True)
class _Needs:
    """What is asked of a model: memory by dtype and capability, and the prompt to predict for."""

    demand: Callable[[torch.dtype, tuple[int, int] | None], Demand]
    prompt_tokens: int


def _open(
    architecture: Architecture, family: str, setting: Setting, needs: _Needs
) -> tuple[Architecture, Executor]:
    gpu = first_gpu(setting.device)
    if gpu is not None:
        try:
            return architecture, _open_on(gpu, architecture, family, setting, needs)
        except CapacityError:
            if setting.device == "cuda":
                raise
    return architecture, _open_on(None, architecture, family, setting, needs)


def _open_on(
    gpu: Gpu | None,
    architecture: Architecture,
    family: str,
    setting: Setting,
    needs: _Needs,
) -> Executor:
    capability = gpu.compute_capability if gpu else None
    dtype = compute_dtype(family, capability)
    specs = architecture.block_specs()
    parts = lay_out_parts(
        specs, lambda _, tensor: None if tensor.kind == "other" else setting.format, dtype
    )
    if gpu:
        sizes = {part.name: part.nbytes for part in parts.values()}
    else:
        sizes = {
            spec.name: sum(tensor_bytes(t, setting.quantize, dtype.itemsize) for t in spec.tensors)
            for spec in specs
        }
    gpu_bytes = 0
    demand = needs.demand(dtype, capability)
    if gpu:
        state = probe_gpu_state(torch.device("cuda", gpu.index))
        demand = replace(demand, context_bytes=state.context_bytes)
        gpu_bytes = capped(state.available_bytes, setting.gpu_memory_bytes)
    plan = make_plan(
        [BlockSize(name, size, has_int4=setting.has_int4) for name, size in sizes.items()],
        "cuda" if gpu else "cpu",
        Budget(gpu_bytes, capped(probe_ram().available_bytes, setting.ram_bytes)),
        demand,
        setting.num_threads or torch.get_num_threads(),
        setting.num_threads,
    )
    source = RandomSource(architecture, setting.quantize, dtype, setting.seed)
    if gpu:
        device = torch.device("cuda", gpu.index)
        work = work_of(parts, needs.prompt_tokens, architecture)
        plan = plan.predicted(work, measured_bandwidth(device))
        return load_streamed(plan, parts, source, device, dtype)
    return ResidentExecutor(plan, source, torch.device("cpu"), dtype)


def _lengths(architecture: Architecture, workload: Workload) -> Lengths:
    has_encoder = architecture.has_encoder
    return Lengths(
        workload.batch,
        workload.prompt_tokens,
        workload.decoder_tokens(has_encoder),
        workload.prompt_tokens if has_encoder else 0,
    )


def _check_length(architecture: Architecture, workload: Workload) -> None:
    limit = architecture.max_positions
    if limit is not None and workload.decoder_tokens(architecture.has_encoder) > limit:
        raise UsageError(
            f"--prompt-tokens {workload.prompt_tokens} and --max-tokens "
            f"{workload.output_tokens} together are more than the shape's context of {limit}; "
            "use less"
        )
