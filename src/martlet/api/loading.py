"""From a model's name to a model that answers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from martlet.api.model import Model
from martlet.compression.absmax import quantize_weights
from martlet.engine.loading import LoadOptions, ModelFolder
from martlet.hub.catalogue import resolve
from martlet.memory.executor import BlockTransform
from martlet.memory.plan import Plan
from martlet.quantization.scheme import QuantizedTensor, StoredWeight

__all__ = ["load", "plan"]


def load(
    model: str | Path,
    *,
    gpu_memory: str | int | None = None,
    ram: str | int | None = None,
    quantize: str | None = None,
    device: str = "auto",
    num_threads: int | None = None,
) -> Model:
    """The model of that name or in that folder, ready to use.

    Args:
        model: a bundled name, the path of a model folder, or a name in the models directory.
        gpu_memory: at most so much memory of the GPU, as in "6GiB"; None = what is free.
        ram: at most so much main memory; None = what is available.
        quantize: "int8" makes the weights int8 while loading, "none" makes them float; None keeps
            them as they are stored.
        device: "cuda", "cpu", or "auto": the GPU where the model fits, else the CPU.
        num_threads: threads of the CPU for this model; None = torch's choice for reading a prompt,
            and for single tokens of a small model one.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelFileError: its files are damaged or do not belong together.
        CapacityError: it does not fit into memory.
        UsageError: an argument is not valid.
    """
    options = LoadOptions(gpu_memory, ram, quantize, device, num_threads)
    folder = ModelFolder(resolve(model))
    planned = folder.plan(options)
    name = Path(model).name or str(model)
    task_model = folder.load(name, planned, _transform(folder, options))
    return Model(task_model, planned.plan, folder.store.generation)


def plan(
    model: str | Path,
    *,
    gpu_memory: str | int | None = None,
    ram: str | int | None = None,
    quantize: str | None = None,
    device: str = "auto",
    num_threads: int | None = None,
) -> Plan:
    """The plan that ``load`` with the same arguments would follow; reads no weights.

    Raises:
        ModelNotFoundError, ModelFileError, CapacityError, UsageError: as ``load``.
    """
    options = LoadOptions(gpu_memory, ram, quantize, device, num_threads)
    return ModelFolder(resolve(model)).plan(options).plan


def _transform(folder: ModelFolder, options: LoadOptions) -> BlockTransform | None:
    """What happens to the weights of a block while they are loaded; None = nothing."""
    if options.quantize in (None, folder.store.quantize):
        return None
    if options.quantize == "none":
        return lambda _, weights: {n: _dequantized(w) for n, w in weights.items()}
    specs = folder.specs()
    return lambda name, weights: quantize_weights(weights, specs[name].tensors)


def _dequantized(weight: StoredWeight) -> Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
