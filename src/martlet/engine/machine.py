"""What this machine's GPU gives to a plan: memory that is left, and the rates it reaches."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from martlet.device.bandwidth import (
    measure_gpu_copy_bandwidth,
    measure_matrix_rate,
    measure_pcie_bandwidth,
)
from martlet.device.gpu_memory import nvml_reader
from martlet.device.probe import Gpu, probe_gpus
from martlet.errors import UsageError
from martlet.memory.plan import Bandwidth

__all__ = [
    "ASSUMED_CONTEXT_BYTES",
    "GpuState",
    "capped",
    "compute_dtype",
    "first_gpu",
    "measured_bandwidth",
    "probe_gpu_state",
]

# The products of a decode step only read, which is faster than copying: fitted on an H200 to steps
# of six models, together with what a block costs beside (see Bandwidth).
_PRODUCT_SHARE = 1.08
# Kernels that are loaded later, captured graphs, and what the allocator cannot fill: with 48 MiB
# for it, 85 MiB more than planned were seen.
_LATER_BYTES = 112 << 20

ASSUMED_CONTEXT_BYTES = 400 << 20
"""Context and libraries on a card that is not here; measured where one is."""


@dataclass(frozen=True)
class GpuState:
    """Memory of a card at the start.

    ``context_bytes`` is what this process needs of it before any tensor: the driver's context,
    libraries, compiled kernels. ``available_bytes`` is what the process may take in all, that
    included.
    """

    context_bytes: int
    available_bytes: int
    capability: tuple[int, int]


def first_gpu(device: str) -> Gpu | None:
    """The card that ``device`` ("auto", "cuda" or "cpu") lets a model use; None for none.

    Raises:
        UsageError: "cuda" without a GPU that torch can use.
    """
    gpus = probe_gpus() if device != "cpu" else ()
    if device == "cuda" and not gpus:
        raise UsageError(
            "device is cuda, but torch finds no GPU here; use --device cpu, "
            "or install a build of torch for your GPU"
        )
    return gpus[0] if gpus else None


def compute_dtype(
    family: str, capability: tuple[int, int] | None, *, is_bfloat16: bool = False
) -> torch.dtype:
    """float32 on the CPU (None); on a GPU the half precision that the model was trained in.

    ``is_bfloat16`` is what its checkpoint says; T5 and its kin overflow float16 whatever theirs
    says. Cards before Ampere have no bfloat16 and compute in float32 instead.
    """
    if capability is None:
        return torch.float32
    if family in ("cpm1", "cpm2", "eva") or not (is_bfloat16 or family in ("t5", "mt5")):
        return torch.float16
    return torch.bfloat16 if capability >= (8, 0) else torch.float32


def capped(available_bytes: int, wish_bytes: int | None) -> int:
    """What may be used of what is there; a wish of None leaves it to the machine."""
    return available_bytes if wish_bytes is None else min(available_bytes, wish_bytes)


@functools.cache
def probe_gpu_state(device: torch.device) -> GpuState:
    """The state of a card; makes the context and loads the float library first."""
    # A product of each kind loads the library and its workspace, which stays.
    one = torch.ones(32, 32, dtype=torch.float16, device=device)
    torch.mm(one, one)
    torch.cuda.synchronize(device)
    free_bytes, total_bytes = torch.cuda.mem_get_info(device)
    tensors_bytes = torch.cuda.memory_reserved(device)
    reader = nvml_reader(device.index or 0)
    process_bytes = reader().process_bytes if reader else None
    if process_bytes is None:
        # The driver does not tell programs apart: all that is used may be ours.
        process_bytes = total_bytes - free_bytes
    return GpuState(
        max(0, process_bytes - tensors_bytes) + _LATER_BYTES,
        free_bytes + process_bytes,
        torch.cuda.get_device_capability(device),
    )


@functools.cache
def measured_bandwidth(device: torch.device) -> Bandwidth:
    """The rates of a card; takes half a second and at most 512 MiB of it, which it gives back."""
    copy_rate = measure_gpu_copy_bandwidth(device)
    rates = Bandwidth(
        gpu_bytes_per_second=_PRODUCT_SHARE * copy_rate,
        pcie_bytes_per_second=measure_pcie_bandwidth(device),
        flops_per_second=measure_matrix_rate(device),
    )
    torch.cuda.empty_cache()
    return rates
