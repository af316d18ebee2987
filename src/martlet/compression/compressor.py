"""A whole model from floats to integers, one block in memory at a time.

Each block is looked at with the inputs that the blocks before it give once they are compressed, so
it also makes up for a little of what those have lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from martlet.checkpoint.planned import PlannedBlock, PlannedWeight
from martlet.compression.calibration import BlockObserver, InputStatistics
from martlet.compression.compress_block import (
    LayerReport,
    Method,
    compress_linears,
    compress_table,
)
from martlet.compression.recipe import Recipe
from martlet.compression.walk import Sample, Walk
from martlet.errors import UsageError
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import BlockSource
from martlet.models.architecture import (
    FIXED,
    Architecture,
    BlockSpec,
    LinearInput,
    Stack,
    own_head_of,
    stacks_of,
)
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import QuantizedTensor, StoredWeight

__all__ = ["NEXT_STEP", "CompressedBlock", "Compressor", "Placement", "batch_size_of"]

_TOKENS_AT_ONCE = {"cpu": 1024}
_TOKENS_AT_ONCE_ELSEWHERE = 4096
# Where the output matrix is looked up as well, its own errors count beside those of the logits:
# damping is a price on them. A half was best of 0.01 to 2, and all of these within a tenth.
_TIED_DAMPING = 0.5

NEXT_STEP = "take a larger --gpu-memory, shorter samples, or --device cpu"
"""What a user may do where compressing or adapting runs out of memory."""


@dataclass(frozen=True)
class Placement:
    """Where blocks are computed, and in which type."""

    device: torch.device
    dtype: torch.dtype

    def dense(self, weights: Mapping[str, StoredWeight]) -> dict[str, Tensor]:
        """The weights of a block as floats on the device in the type of the computation."""
        return {
            name: weight.to(self.device, self.dtype)
            if isinstance(weight, Tensor)
            else weight.to(self.device).dequantize(self.dtype)
            for name, weight in weights.items()
        }


@dataclass(frozen=True, eq=False)
class CompressedBlock:
    """A block that is done: its weights on the host, by their names inside it.

    ``output_error`` is how far the block's outputs are from those of its float form on the same
    inputs, relative, root mean square; None without calibration.
    """

    spec: BlockSpec
    weights: Mapping[str, StoredWeight]
    layers: tuple[LayerReport, ...]
    output_error: float | None
    seconds: float

    @property
    def planned(self) -> PlannedBlock:
        """What a file holds of it."""
        weights = []
        for tensor in self.spec.tensors:
            weight = self.weights[tensor.name]
            form = weight.dtype if isinstance(weight, Tensor) else weight.format
            name, scale_dtype = self.spec.prefix + tensor.name, torch.float32
            if isinstance(weight, QuantizedTensor):
                scale_dtype = weight.scale.dtype
            weights.append(PlannedWeight(name, tensor.shape, form, scale_dtype))
        return PlannedBlock(self.spec.name, self.spec.prefix, tuple(weights))


def batch_size_of(samples: Sequence[Sample], device: torch.device) -> int:
    """How many samples go through a block together."""
    longest = max(max(len(s.decoder_ids), len(s.encoder_ids)) for s in samples)
    tokens = _TOKENS_AT_ONCE.get(device.type, _TOKENS_AT_ONCE_ELSEWHERE)
    return max(1, tokens // longest)


@dataclass(eq=False)
class Compressor:
    """Compresses the blocks of ``source``, all of whose weights must be floats.

    Without samples nothing is calibrated, which only the method "nearest" allows. ``release`` is
    called whenever the weights of a block are no longer needed.
    """

    architecture: Architecture
    source: BlockSource
    recipe: Recipe
    method: Method
    samples: Sequence[Sample]
    placement: Placement
    release: Callable[[], None] = field(default=lambda: None)

    def __post_init__(self) -> None:
        if not self.samples and self.method.name != "nearest":
            raise UsageError(
                f"method {self.method.name} needs calibration text; give --calibration FILE"
            )
        self._specs = self.architecture.block_specs()
        self._by_name = {spec.name: spec for spec in self._specs}
        self.recipe.require_matches(self._specs)

    def blocks(
        self, finished: Callable[[str], CompressedBlock | None] = lambda _: None
    ) -> Iterator[CompressedBlock]:
        """The blocks as they get done: the encoder's, the decoder's, then the fixed ones.

        ``finished`` may hand back a block that has been done before, by its name. The samples still
        go through it, so that the next one sees the same as it would have.

        Raises:
            ModelFileError: a weight, or what a layer reads, is infinite or not a number.
            CapacityError: memory ran out.
        """
        tables = self._tables()
        walk = self._new_walk()
        for stack in stacks_of(self.architecture):
            fixed = self._fixed_to_walk_with(tables.weights)
            if walk is not None:
                walk.enter(fixed, stack)
            for index in range(self.architecture.num_blocks(stack)):
                with report_out_of_memory(f"compressing {stack}.{index}", NEXT_STEP):
                    block = self._block(walk, stack, index, finished(f"{stack}.{index}"))
                yield block
            if walk is not None and stack == "encoder":
                walk.leave(fixed, stack)
        with report_out_of_memory("compressing the output matrix", NEXT_STEP):
            yield finished(FIXED) or self._finish_fixed(walk, tables)

    def _new_walk(self) -> Walk | None:
        if not self.samples:
            return None
        device, dtype = self.placement.device, self.placement.dtype
        batch_size = batch_size_of(self.samples, device)
        return Walk(self.architecture, self.samples, device, dtype, batch_size)

    def _block(
        self, walk: Walk | None, stack: Stack, index: int, done: CompressedBlock | None
    ) -> CompressedBlock:
        started = time.perf_counter()
        spec = self._by_name[f"{stack}.{index}"]
        if done is not None:
            if walk is not None:
                walk.run(stack, index, self.placement.dense(done.weights))
            return done
        weights = _floats(self.source.block(spec.name), spec)
        inputs = self.architecture.linear_inputs(stack)
        statistics: dict[LinearInput, InputStatistics | None] = dict.fromkeys(inputs)
        expected: list[Tensor] = []
        if walk is not None:
            observer = BlockObserver(inputs, stack, self.placement.device)
            observed = observer.observed(self.placement.dense(weights))
            expected = walk.run(stack, index, observed, keep=False, observe=observer.begin)
            statistics.update(observer.statistics)
            del observed, observer
        results, layers = self._compress(spec, weights, statistics, self.method)
        output_error = None
        if walk is not None:
            outputs = walk.run(stack, index, self.placement.dense(results))
            output_error = _relative_error(walk, stack, outputs, expected)
        self.release()
        return CompressedBlock(
            spec, results, tuple(layers), output_error, time.perf_counter() - started
        )

    def _compress(
        self,
        spec: BlockSpec,
        weights: Mapping[str, Tensor],
        statistics: dict[LinearInput, InputStatistics | None],
        method: Method,
    ) -> tuple[dict[str, StoredWeight], list[LayerReport]]:
        device = self.placement.device
        results, layers = compress_linears(weights, statistics, self._formats(spec), method, device)
        return results, [layer.within(spec.prefix) for layer in layers]

    def _tables(self) -> CompressedBlock:
        """The fixed weights with their tables compressed, and the output matrix as it was."""
        started = time.perf_counter()
        spec = self._by_name[FIXED]
        formats = self._formats(spec)
        results: dict[str, StoredWeight] = {}
        layers = []
        for tensor in spec.tensors:
            weight = _floats(self.source.block(FIXED), spec)[tensor.name]
            format = formats[tensor.name]
            results[tensor.name] = weight
            if tensor.kind == "embedding" and format is not None:
                table, report = compress_table(tensor.name, weight, format, self.placement.device)
                results[tensor.name] = table
                layers.append(report)
            self.release()
        return CompressedBlock(spec, results, tuple(layers), None, time.perf_counter() - started)

    def _fixed_to_walk_with(self, weights: Mapping[str, StoredWeight]) -> dict[str, StoredWeight]:
        """All but an output matrix of its own, which only the end needs; tables keep their form."""
        device, dtype = self.placement.device, self.placement.dtype
        own_head = own_head_of(self.architecture)
        return {
            name: weight.to(device, dtype) if isinstance(weight, Tensor) else weight.to(device)
            for name, weight in weights.items()
            if name != own_head
        }

    def _finish_fixed(self, walk: Walk | None, tables: CompressedBlock) -> CompressedBlock:
        """The fixed weights with the output matrix compressed for what it reads."""
        started = time.perf_counter()
        source, method = self.architecture.head_input(), self.method
        (name,) = source.consumers
        weights = {n: w for n, w in tables.weights.items() if isinstance(w, Tensor)}
        if own_head_of(self.architecture) is None:
            if walk is None or not method.is_gptq or self._formats(tables.spec)[name] is None:
                return tables
            weights[name] = _floats(self.source.block(FIXED), tables.spec)[name]
            method = replace(method, damping=_TIED_DAMPING)
        statistics: dict[LinearInput, InputStatistics | None] = {source: None}
        if walk is not None:
            statistics[source] = self._observe_head(walk, source, weights[name], tables.weights)
        results, layers = self._compress(tables.spec, weights, statistics, method)
        kept = [layer for layer in tables.layers if layer.name != tables.spec.prefix + name]
        seconds = tables.seconds + time.perf_counter() - started
        compressed = {**tables.weights, **results}
        return CompressedBlock(tables.spec, compressed, (*kept, *layers), None, seconds)

    def _observe_head(
        self, walk: Walk, source: LinearInput, head: Tensor, weights: Mapping[str, StoredWeight]
    ) -> InputStatistics:
        """What the output matrix reads; one row of it runs, for nobody looks at logits."""
        device = self.placement.device
        observer = BlockObserver([source], "decoder", device)
        fixed = self._fixed_to_walk_with(weights)
        one_row = head[:1].to(device, self.placement.dtype)
        observed = observer.observed({source.consumers[0]: one_row})
        with torch.no_grad():
            for batch, hidden in zip(walk.batches, walk.inputs(), strict=True):
                observer.begin(batch)
                self.architecture.head({**fixed, **observed}, "decoder", hidden.to(device))
        return observer.statistics[source]

    def _formats(self, spec: BlockSpec) -> dict[str, WeightFormat | None]:
        return {
            tensor.name: self.recipe.format_of(spec.prefix + tensor.name, tensor, spec, self._specs)
            for tensor in spec.tensors
        }


def _floats(weights: Mapping[str, StoredWeight], spec: BlockSpec) -> dict[str, Tensor]:
    """The weights of a block, which must be floats."""
    floats = {}
    for tensor in spec.tensors:
        weight = weights[tensor.name]
        if not isinstance(weight, Tensor):
            raise UsageError(
                f"{spec.prefix}{tensor.name} is {weight.format.name} already; "
                "compression starts from a model with float weights"
            )
        floats[tensor.name] = weight
    return floats


def _relative_error(
    walk: Walk, stack: Stack, outputs: Sequence[Tensor], expected: Sequence[Tensor]
) -> float:
    above = below = 0.0
    for batch, out, wanted in zip(walk.batches, outputs, expected, strict=True):
        is_real = batch.is_real(stack)
        right = wanted[is_real].to(torch.float32)
        above += float((out[is_real].to(torch.float32) - right).square().sum())
        below += float(right.square().sum())
    return (above / below) ** 0.5 if below > 0 else 0.0
