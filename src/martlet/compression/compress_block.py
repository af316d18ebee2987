"""One block from floats to integers, by the method that was asked for, with what it cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from martlet.compression.calibration import InputStatistics
from martlet.compression.gptq import OutputError, gptq, squared_output
from martlet.compression.groups import quantize_groups
from martlet.compression.nearest import SEARCHED_RANGES, quantize_matrix
from martlet.compression.scaling import Consumer, best_factors, fold, rescale_hessian
from martlet.errors import UsageError
from martlet.models.architecture import LinearInput
from martlet.quantization.formats import WeightFormat
from martlet.quantization.joining import joined_rows
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor, StoredWeight

__all__ = [
    "METHODS",
    "PIECE_ELEMENTS",
    "LayerReport",
    "Method",
    "compress_linears",
    "compress_table",
]

PIECE_ELEMENTS = 1 << 25
"""Elements of a matrix that are on the device as float32 at a time."""

METHODS = ("nearest", "gptq", "scaled", "scaled+gptq")


@dataclass(frozen=True)
class Method:
    """How integers are chosen; ``name`` is one of ``METHODS``.

    ``damping``, as a share of the mean of a Hessian's diagonal, is for a Hessian that is known
    exactly; see ``damping_for``.
    """

    name: str
    activation_order: bool = True
    damping: float = 0.05

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UsageError(f"method is {self.name!r:.40}; it must be {', '.join(METHODS)}")

    @property
    def is_scaled(self) -> bool:
        """Whether input channels are scaled first."""
        return self.name.startswith("scaled")

    @property
    def is_gptq(self) -> bool:
        """Whether integers make up for each other's errors."""
        return self.name.endswith("gptq")

    def damping_for(self, in_features: int, num_rows: int) -> float:
        """More the fewer rows a Hessian was gathered from: chance correlations help no other text.

        Judged by unseen text on layers of a trained model: with 1.5 k rows 0.3 is best for 320
        features and more for 1,280; with 16 k rows it is 0.1; 0.01 is worse in all of them.
        """
        return self.damping + in_features / max(1, num_rows)


@dataclass(frozen=True)
class LayerReport:
    """What became of one matrix.

    ``error_before`` is that of the integers nearest to the weights with ranges that leave none out,
    ``error_after`` that of the integers that were chosen: the error of the outputs on the
    calibration inputs, relative to the outputs, root mean square. Of a table that is looked up, or
    without calibration, it is the error of the weights. ``loss`` is the mean squared error of the
    outputs, summed over them.
    """

    name: str
    format: str
    bits_per_weight: float
    error_before: float
    error_after: float
    loss: float
    seconds: float

    def within(self, prefix: str) -> LayerReport:
        """The same with the name that the file has."""
        return replace(self, name=prefix + self.name)


def compress_linears(
    weights: Mapping[str, Tensor],
    statistics: dict[LinearInput, InputStatistics | None],
    formats: Mapping[str, WeightFormat | None],
    method: Method,
    device: torch.device,
) -> tuple[dict[str, StoredWeight], list[LayerReport]]:
    """The weights of a block with the consumers of its inputs in their formats, on the host.

    Names are those inside the block. What has no format, norms and biases among it, stays float in
    its type, perhaps divided by factors. ``statistics`` is used up, because it is large.

    Raises:
        ModelFileError: a weight, or what came in, is infinite or not a number.
    """
    floats, factors = dict(weights), {}
    if method.is_scaled:
        for source, gathered in statistics.items():
            found = _factors(floats, source, gathered, formats, device)
            if found is not None:
                factors[source] = found
                _fold(floats, source, found, device)
    results: dict[str, StoredWeight] = {}
    reports = []
    for source in tuple(statistics):
        gathered = statistics.pop(source)
        hessian = None if gathered is None else gathered.hessian()
        named = [(name, formats[name]) for name in source.consumers]
        linears = [_Linear(name, weights[name], format) for name, format in named if format]
        before = [linear.plain_error(hessian, device) for linear in linears]
        num_rows = 0 if gathered is None else gathered.num_rows
        error = _output_error(hessian, factors.get(source), method, num_rows)
        for linear, error_before in zip(linears, before, strict=True):
            scaled = _Linear(linear.name, floats.pop(linear.name), linear.format)
            results[linear.name], report = _compress(scaled, error, method, device, error_before)
            reports.append(report)
    for name, weight in floats.items():
        results[name] = weight.to("cpu", weights[name].dtype)
    return results, reports


def compress_table(
    name: str, weight: Tensor, format: WeightFormat, device: torch.device
) -> tuple[StoredWeight, LayerReport]:
    """A table that is looked up: the nearest integers, ranges searched."""
    table = _Linear(name, weight, format)
    before = table.plain_error(None, device)
    return _compress(table, None, Method("nearest"), device, before)


@dataclass(frozen=True, eq=False)
class _Linear:
    """A matrix on its way, in any float type and anywhere."""

    name: str
    weight: Tensor
    format: WeightFormat

    def pieces(self, device: torch.device) -> Iterator[Tensor]:
        """Its rows as float32 on the device, so many at a time: rows do not know of each other."""
        step = max(1, PIECE_ELEMENTS // max(1, self.weight.shape[1]))
        for start in range(0, self.weight.shape[0], step):
            yield self.weight[start : start + step].to(device, torch.float32)

    def plain_error(self, hessian: Tensor | None, device: torch.device) -> tuple[float, float]:
        """(relative error of the plain nearest integers, seconds that it took to know)."""
        started = time.perf_counter()
        error = _ErrorSum(hessian)
        for piece in self.pieces(device):
            error.add(quantize_matrix(piece, self.format, self.name), piece)
        return error.relative(), time.perf_counter() - started


@dataclass
class _ErrorSum:
    """Squared errors of outputs, or of weights where there is no Hessian, and what they are of."""

    hessian: Tensor | None
    above: float = 0.0
    below: float = 0.0

    def add(self, quantized: QuantizedTensor | GroupedTensor, weight: Tensor) -> None:
        self.above += self._squared(quantized.dequantize().sub_(weight))
        self.below += self._squared(weight)

    def relative(self) -> float:
        return (self.above / self.below) ** 0.5 if self.below > 0 else 0.0

    def _squared(self, weight: Tensor) -> float:
        if self.hessian is None:
            return float(weight.square().sum())
        return float(squared_output(weight, self.hessian).sum().clamp(min=0))


def _compress(
    linear: _Linear,
    error: OutputError | None,
    method: Method,
    device: torch.device,
    before: tuple[float, float],
) -> tuple[StoredWeight, LayerReport]:
    started = time.perf_counter()
    name, format = linear.name, linear.format
    after = _ErrorSum(None if error is None else error.hessian)
    parts: list[QuantizedTensor | GroupedTensor] = []
    for piece in linear.pieces(device):
        if error is not None and method.is_gptq:
            chosen = gptq(piece, error, format, name, candidates=SEARCHED_RANGES)
        else:
            chosen = _nearest(piece, format, name, error)
        after.add(chosen, piece)
        parts.append(chosen.to("cpu"))
    stored = joined_rows(parts)
    bits = 8 * stored.nbytes / stored.shape.numel()
    error_before, seconds = before
    seconds += time.perf_counter() - started
    return stored, LayerReport(
        name, format.name, bits, error_before, after.relative(), after.above, seconds
    )


def _nearest(
    weight: Tensor, format: WeightFormat, name: str, error: OutputError | None
) -> QuantizedTensor | GroupedTensor:
    if format.group_size is None or error is None:
        return quantize_matrix(weight, format, name, candidates=SEARCHED_RANGES)
    return quantize_groups(
        weight, format, name, candidates=SEARCHED_RANGES, importance=error.importance
    )


def _output_error(
    hessian: Tensor | None, factors: Tensor | None, method: Method, num_rows: int
) -> OutputError | None:
    if hessian is None:
        return None
    if factors is not None:
        hessian = rescale_hessian(hessian, factors)
    damping = method.damping_for(len(hessian), num_rows)
    return OutputError(hessian, activation_order=method.activation_order, damping=damping)


def _factors(
    floats: Mapping[str, Tensor],
    source: LinearInput,
    gathered: InputStatistics | None,
    formats: Mapping[str, WeightFormat | None],
    device: torch.device,
) -> Tensor | None:
    # One scale a row follows a factor of a column as little as it follows anything else.
    named = [(name, formats[name]) for name in source.consumers]
    consumers = [
        Consumer(floats[name].to(device, torch.float32), format)
        for name, format in named
        if format is not None and format.group_size is not None
    ]
    if gathered is None or not source.producers or not consumers:
        return None
    return best_factors(consumers, gathered.hessian(), gathered.magnitude())


def _fold(
    floats: dict[str, Tensor], source: LinearInput, factors: Tensor, device: torch.device
) -> None:
    """Fold on the device; the block as float32 waits on the host, where there is more room."""
    names = (*source.consumers, *source.producers)
    part = {name: floats[name].to(device, torch.float32) for name in names}
    fold(part, source, factors)
    floats.update({name: weight.to("cpu") for name, weight in part.items()})
