"""A model of random weights, made for this machine as a model folder would be loaded."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from martlet.bench.limits import tensor_bytes
from martlet.bench.passes import Workload
from martlet.bench.random_source import RandomSource
from martlet.bench.shapes import Shape
from martlet.device.probe import Gpu, probe_gpus, probe_ram
from martlet.errors import CapacityError, UsageError
from martlet.memory.executor import Executor, ResidentExecutor
from martlet.memory.plan import BlockSize, Budget, Demand, make_plan
from martlet.models.architecture import Architecture
from martlet.models.config import load_architecture

__all__ = ["Setting", "open_shape"]

_WORKSPACE_FLOOR_BYTES = 64 << 20


@dataclass(frozen=True)
class Setting:
    """Where random weights may live and in what form; None leaves a limit to the machine."""

    quantize: str = "int8"
    device: str = "auto"
    gpu_memory_bytes: int | None = None
    ram_bytes: int | None = None
    num_threads: int | None = None
    seed: int = 0


def open_shape(shape: Shape, setting: Setting, workload: Workload) -> tuple[Architecture, Executor]:
    """The architecture of a shape and random weights for it, planned for one workload.

    Raises:
        CapacityError: weights, cache and workspace do not fit.
        UsageError: device "cuda" without a GPU, or more tokens than the model has positions.
        ModelFileError: the shape's config.json is not supported.
    """
    architecture = load_architecture(shape.config)
    _check_length(architecture, workload)
    gpus = probe_gpus() if setting.device != "cpu" else ()
    if setting.device == "cuda" and not gpus:
        raise UsageError(
            "device is cuda, but torch finds no GPU here; use --device cpu, "
            "or install a build of torch for your GPU"
        )
    if gpus:
        try:
            dtype = _compute_dtype(shape, gpus[0])
            return architecture, _open_on(gpus[0], architecture, dtype, setting, workload)
        except CapacityError:
            if setting.device == "cuda":
                raise
    dtype = _compute_dtype(shape, None)
    return architecture, _open_on(None, architecture, dtype, setting, workload)


def _open_on(
    gpu: Gpu | None,
    architecture: Architecture,
    dtype: torch.dtype,
    setting: Setting,
    workload: Workload,
) -> Executor:
    sizes = [
        BlockSize(
            spec.name,
            sum(tensor_bytes(t, setting.quantize, dtype.itemsize) for t in spec.tensors),
        )
        for spec in architecture.block_specs()
    ]
    budget = Budget(
        gpu_bytes=_capped(gpu.free_bytes if gpu else 0, setting.gpu_memory_bytes),
        ram_bytes=_capped(probe_ram().available_bytes, setting.ram_bytes),
    )
    plan = make_plan(
        sizes,
        "cuda" if gpu else "cpu",
        budget,
        _demand(architecture, workload, dtype),
        setting.num_threads or torch.get_num_threads(),
        setting.num_threads,
    )
    where = torch.device("cuda", gpu.index) if gpu else torch.device("cpu")
    source = RandomSource(architecture, setting.quantize, dtype, setting.seed)
    return ResidentExecutor(plan, source, where, dtype)


def _demand(architecture: Architecture, workload: Workload, dtype: torch.dtype) -> Demand:
    """The cache, and an upper estimate of the activations of the longest pass."""
    has_encoder = architecture.has_encoder
    cache_bytes = architecture.cache_bytes(
        workload.batch,
        workload.decoder_tokens(has_encoder),
        workload.prompt_tokens if has_encoder else 0,
        dtype,
    )
    tensors = [tensor for spec in architecture.block_specs() for tensor in spec.tensors]
    widest = max(tensor.shape[0] for tensor in tensors if tensor.kind == "linear")
    hidden_size = next(t.shape[1] for t in tensors if t.kind == "embedding")
    rows = workload.batch * workload.prompt_tokens
    # Scores of all heads (64 wide in most models) twice, the widest layer in and out with a copy.
    scores_bytes = 2 * 4 * rows * workload.prompt_tokens * max(1, hidden_size // 64)
    activation_bytes = 4 * dtype.itemsize * rows * (hidden_size + widest)
    return Demand(cache_bytes, scores_bytes + activation_bytes + _WORKSPACE_FLOOR_BYTES)


def _check_length(architecture: Architecture, workload: Workload) -> None:
    limit = architecture.max_positions
    if limit is not None and workload.decoder_tokens(architecture.has_encoder) > limit:
        raise UsageError(
            f"--prompt-tokens {workload.prompt_tokens} and --max-tokens "
            f"{workload.output_tokens} together are more than the shape's context of {limit}; "
            "use less"
        )


def _capped(available_bytes: int, wish_bytes: int | None) -> int:
    return available_bytes if wish_bytes is None else min(available_bytes, wish_bytes)


def _compute_dtype(shape: Shape, gpu: Gpu | None) -> torch.dtype:
    """What a model folder of the family would be computed in."""
    if gpu is None:
        return torch.float32
    if shape.family not in ("t5", "mt5"):
        return torch.float16
    # T5 overflows float16; cards before Ampere have no bfloat16.
    return torch.bfloat16 if gpu.compute_capability >= (8, 0) else torch.float32
