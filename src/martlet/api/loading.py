"""From a model's name to a model that answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from martlet.api.model import Model
from martlet.api.opening import open_model
from martlet.device.bandwidth import parse_flops, parse_rate
from martlet.device.probe import Gpu
from martlet.device.size import parse_bytes
from martlet.engine.load_options import LoadOptions
from martlet.engine.loaded_weights import LoadProgress
from martlet.hub.locate import short_name
from martlet.memory.plan import Bandwidth, Plan
from martlet.quantization.kv_form import KVForm

__all__ = ["Card", "load", "plan", "plan_for_card"]


@dataclass(frozen=True)
class Card:
    """A graphics card that need not be in this machine, by its data sheet.

    Attributes:
        memory: what may be used of its memory, as in "6GiB".
        bandwidth: rate at which it reads its memory, as in "150GB/s"; what is reached, about 0.8
            of the data sheet's figure.
        pcie_bandwidth: rate of copies to it, as in "12GB/s".
        flops: half-precision operations per second, as in "4.4TFLOPS"; without it the time to the
            first token is not predicted.
        compute_capability: NVIDIA's version of its instructions.
    """

    memory: str | int
    bandwidth: str | float
    pcie_bandwidth: str | float
    flops: str | float | None = None
    compute_capability: tuple[int, int] = (8, 0)


def load(  # noqa: PLR0913  (all that loading can be told, by keyword)
    model: str | Path,
    *,
    gpu_memory: str | int | None = None,
    ram: str | int | None = None,
    quantize: str | None = None,
    device: str = "auto",
    num_threads: int | None = None,
    slots: int | Literal["auto"] | None = None,
    context: int | None = None,
    kv_cache: KVForm = "none",
    progress: LoadProgress | None = None,
) -> Model:
    """The model of that name or in that folder, ready to use.

    Args:
        model: a bundled name, the path of a model folder (ours, or one as the Hugging Face hub has
            it) or GGUF file, a name in the models directory, or ORG/NAME of the hub: see
            ``martlet.hub.locate``. What is not here is fetched.
        gpu_memory: at most so much memory of the GPU, as in "6GiB"; None = what is free.
        ram: at most so much main memory; None = what is available.
        quantize: the form of the weights: "int4" (groups of 32), "int8", "none" for floats, or a
            format by its full name such as "int4-g128", "int4-g64-asym" or "int8-g32". Linears and
            embeddings take it while they are loaded, block by block, on the GPU where it computes;
            integers that are stored in another format are requantised, which costs a little more
            quality than floats rounded once, and no calibration takes part as it does in
            ``martlet quantize``. None is "int8" for floats as the hub has them; a model folder of
            ours, and integers, stay as they are, as they do with what they are called.
        device: "cuda", "cpu", or "auto": the GPU where the model fits, else the CPU.
        num_threads: threads of the CPU for this model; None = torch's choice for reading a prompt,
            and for single tokens of a small model one.
        slots: texts that a batch writes at a time, whose caches the plan pays for; "auto" = 16,
            8, 4, 2 or 1, the most whose caches take a quarter of the memory that computes at most.
            None = one text, without a batch.
        context: tokens of the decoder in a slot, at most; None = the positions of the model, but
            no more than 4096, or 512 where it has no limit.
        kv_cache: "int8" keeps the keys and values of attention as integers with a scale for each
            vector of a head, in about half the bytes of float16; "none" in the type of the
            activations.
        progress: called with (bytes read, bytes in all, name of the tensor) after each tensor.

    Raises:
        ModelNotFoundError: there is no such model.
        DownloadError: it is on the hub, and cannot be fetched.
        ModelFileError: its files are damaged or do not belong together.
        CapacityError: it does not fit into memory.
        UsageError: an argument is not valid.
    """
    options = LoadOptions(gpu_memory, ram, quantize, device, num_threads, slots, context, kv_cache)
    opened = open_model(model)
    planned = opened.plan(options)
    name = short_name(str(model))
    task_model = opened.load(name, planned, progress)
    quantize = planned.forms.quantize
    quantized = None if quantize == "none" else quantize
    return Model(task_model, planned.plan, planned.limits, opened.files.generation, quantized)


def plan(  # noqa: PLR0913  (the arguments of load)
    model: str | Path,
    *,
    gpu_memory: str | int | None = None,
    ram: str | int | None = None,
    quantize: str | None = None,
    device: str = "auto",
    num_threads: int | None = None,
    slots: int | Literal["auto"] | None = None,
    context: int | None = None,
    kv_cache: KVForm = "none",
) -> Plan:
    """The plan that ``load`` with the same arguments would follow; reads no weights.

    Raises:
        ModelNotFoundError, ModelFileError, CapacityError, UsageError: as ``load``.
    """
    options = LoadOptions(gpu_memory, ram, quantize, device, num_threads, slots, context, kv_cache)
    return open_model(model).plan(options).plan


def plan_for_card(  # noqa: PLR0913  (the arguments of load)
    model: str | Path,
    card: Card,
    *,
    ram: str | int | None = None,
    quantize: str | None = None,
    slots: int | Literal["auto"] | None = None,
    context: int | None = None,
    kv_cache: KVForm = "none",
) -> Plan:
    """The plan on a graphics card that need not be here, with the speed to expect from it.

    ``ram`` None is what this machine has available.

    Raises:
        ModelNotFoundError, ModelFileError, CapacityError, UsageError: as ``load``.
    """
    memory_bytes = parse_bytes(card.memory, "memory")
    gpu = Gpu(0, "planned", memory_bytes, memory_bytes, card.compute_capability)
    bandwidth = Bandwidth(
        gpu_bytes_per_second=parse_rate(card.bandwidth, "bandwidth"),
        pcie_bytes_per_second=parse_rate(card.pcie_bandwidth, "pcie_bandwidth"),
        flops_per_second=None if card.flops is None else parse_flops(card.flops, "flops"),
    )
    options = LoadOptions(
        ram=ram,
        quantize=quantize,
        device="cuda",
        slots=slots,
        context=context,
        kv_cache=kv_cache,
    )
    return open_model(model).plan_for_card(gpu, bandwidth, options)
