"""Integers that make up for each other's rounding errors: GPTQ (arXiv 2210.17323).

The output of a linear is off by ``dW x``; over calibration inputs its mean square is the trace of
``dW H dW.T`` with ``H`` the mean of ``x x.T``. Inputs are rounded one after the other, and what
each rounding costs is taken back, as far as inputs are correlated, by the weights of those that are
still to come. The largest inputs come first, when the most others are left to make up for them.
Scales are settled before, from the weights as they were, so groups stay where they are in the file
whatever the order of the rounding.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from martlet.compression.absmax import quantize_rows
from martlet.compression.groups import assemble, nearest, search_scales
from martlet.errors import ModelFileError
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

__all__ = ["OutputError", "gptq", "squared_output"]

# Columns whose corrections are carried over to the others in one product, as in the paper.
_COLUMNS_AT_ONCE = 128
# Elements of the rows that are worked on at a time: rows do not know of each other.
_ROWS_ELEMENTS = 1 << 26
_DAMPING_TRIES = 8


class OutputError:
    """How much errors in weights cost in the output of linears that read one input.

    ``damping`` times the mean of the diagonal is added to the Hessian, ten times as much whenever
    that is not enough to invert it. ``activation_order`` False rounds inputs from left to right.
    Linears that read the same input share it.

    Shapes:
        hessian: (in_features, in_features) float32, symmetric, the mean of x x.T

    Raises:
        ModelFileError: the Hessian holds infinite values or such as are no numbers.
    """

    def __init__(
        self, hessian: Tensor, *, activation_order: bool = True, damping: float = 0.01
    ) -> None:
        if not torch.isfinite(hessian.sum()):
            raise ModelFileError(
                "the calibration inputs of a layer are infinite or not a number; "
                "the model overflows in the type it is computed in, or its weights are damaged"
            )
        mean = float(hessian.diagonal().mean())
        self.hessian = hessian
        self._activation_order = activation_order
        # Where nothing came in, all weights cost alike.
        self._damp = damping * (mean if mean > 0 else 1.0)

    @property
    def importance(self) -> Tensor:
        """The diagonal, damped, so that no input counts nothing: (in_features,)."""
        return self.hessian.diagonal() + self._damp

    @cached_property
    def order(self) -> Tensor:
        """The order in which inputs are rounded: (in_features,) int64."""
        if not self._activation_order:
            return torch.arange(self.hessian.shape[0], device=self.hessian.device)
        return torch.argsort(self.hessian.diagonal(), descending=True, stable=True)

    @cached_property
    def upper(self) -> Tensor:
        """How the error of an input is spread over later ones, upper triangular, in that order.

        Shapes:
            return: (in_features, in_features) float32; upper.T @ upper is the inverse of the damped
                Hessian
        """
        for attempt in range(_DAMPING_TRIES):
            upper = _inverse_factor(self.hessian, self.order, self._damp * 10**attempt)
            if upper is not None:
                return upper
        raise AssertionError("a matrix that is nearly its own diagonal can be inverted")

    def of(self, difference: Tensor) -> Tensor:
        """Mean square error of each output, (rows,), of weights off by (rows, in_features)."""
        return squared_output(difference, self.hessian)


def squared_output(weight: Tensor, hessian: Tensor) -> Tensor:
    """Mean square of each output of a matrix.

    Shapes:
        weight: (rows, in_features) float32
        return: (rows,) float32
    """
    with _exact_products():
        return torch.mm(weight, hessian).mul_(weight).sum(1)


def gptq(
    weight: Tensor,
    error: OutputError,
    format: WeightFormat,
    name: str = "weight",
    *,
    candidates: int = 1,
) -> GroupedTensor | QuantizedTensor:
    """The integer form of a matrix whose outputs are off least on the calibration inputs.

    A row for which rounding to nearest under the same scales costs less (which happens where
    damping dominates) is rounded to nearest. ``candidates`` ranges are tried for each group.

    Shapes:
        weight: (out_features, in_features) float32, on the device of the Hessian

    Raises:
        ModelFileError: a weight is infinite or not a number.
    """
    assert weight.dtype == torch.float32
    if format.group_size is None:
        return _int8_rows(weight, error, name)
    columns = weight.shape[1]
    scales = search_scales(weight, format, name, candidates=candidates, importance=error.importance)
    grid = _Grid(scales.steps(), scales.centers(format), format)
    rounded = nearest(weight, scales, format)
    corrected = _by_rows(weight, grid, error)
    integers = _better(weight, grid, error, rounded, corrected)
    return assemble(integers, scales, columns, format)


def _int8_rows(weight: Tensor, error: OutputError, name: str) -> QuantizedTensor:
    plain = quantize_rows(weight, name)
    steps = plain.scale[:, None]
    grid = _Grid(steps, torch.zeros_like(steps), plain.format)
    integers = _better(weight, grid, error, plain.data, _by_rows(weight, grid, error))
    return QuantizedTensor(integers, plain.scale)


@dataclass(frozen=True, eq=False)
class _Grid:
    """The values that each weight may take: (integer - center) * step.

    Shapes:
        steps, centers: (rows, num_groups) float32
    """

    steps: Tensor
    centers: Tensor
    format: WeightFormat

    def rows(self, start: int, stop: int) -> _Grid:
        return _Grid(self.steps[start:stop], self.centers[start:stop], self.format)

    def of_inputs(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Steps and centers of some inputs, (len(inputs), rows) each."""
        size = self.format.group_size
        groups = torch.zeros_like(inputs) if size is None else inputs // size
        return self.steps.t()[groups].contiguous(), self.centers.t()[groups].contiguous()

    def values(self, integers: Tensor) -> Tensor:
        """The weights that integers (rows, in_features) stand for, float32."""
        columns = integers.shape[1]
        size = self.format.group_size or columns
        centers = self.centers.repeat_interleave(size, 1)[:, :columns]
        steps = self.steps.repeat_interleave(size, 1)[:, :columns]
        return integers.to(torch.float32).sub_(centers).mul_(steps)


def _inverse_factor(hessian: Tensor, order: Tensor, damp: float) -> Tensor | None:
    """The upper triangular U with U.T @ U the inverse of the damped Hessian; None where none is.

    With J turning rows and columns round and J H J = L L.T, U is J L^-1 J: one factorisation and
    one triangular inverse.
    """
    backwards = order.flip(0)
    matrix = hessian[backwards][:, backwards]
    matrix.diagonal().add_(damp)
    with _exact_products():
        lower, failed = torch.linalg.cholesky_ex(matrix)
        if int(failed):
            return None
        del matrix
        inverse = torch.eye(len(order), device=hessian.device)
        torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
        del lower
        upper = inverse.flip(0, 1)
    return upper if bool(torch.isfinite(upper.sum())) else None


def _by_rows(weight: Tensor, grid: _Grid, error: OutputError) -> Tensor:
    rows, columns = weight.shape
    step = max(1, _ROWS_ELEMENTS // max(1, columns))
    parts = [
        _corrected(weight[start : start + step], grid.rows(start, start + step), error)
        for start in range(0, rows, step)
    ]
    return torch.cat(parts)


def _corrected(weight: Tensor, grid: _Grid, error: OutputError) -> Tensor:
    """Integers of some rows, (rows, in_features), each input chosen after those before it."""
    rows, columns = weight.shape
    lowest, highest = grid.format.levels
    dtype = torch.uint8 if grid.format.bits == 4 else torch.int8
    order, factor = error.order, error.upper
    left = weight.t()[order]  # (in_features, rows): what is still to be represented
    chosen = torch.empty((columns, rows), dtype=dtype, device=weight.device)
    with _exact_products():
        for start in range(0, columns, _COLUMNS_AT_ONCE):
            stop = min(start + _COLUMNS_AT_ONCE, columns)
            steps, centers = grid.of_inputs(order[start:stop])
            divisors = torch.where(steps == 0, torch.inf, steps)
            upper = factor[start:stop]
            off = torch.empty_like(steps)
            for i, value in enumerate(left[start:stop]):
                level = (value / divisors[i] + centers[i]).round_().clamp_(lowest, highest)
                chosen[start + i] = level
                value -= level.sub_(centers[i]).mul_(steps[i])
                torch.div(value, upper[i, start + i], out=off[i])
                after = left[start + i + 1 : stop]
                after.addr_(upper[i, start + i + 1 : stop], off[i], alpha=-1)
            left[stop:].addmm_(upper[:, stop:].t(), off, alpha=-1)
    integers = torch.empty_like(chosen)
    integers[order] = chosen
    return integers.t()


def _better(
    weight: Tensor, grid: _Grid, error: OutputError, rounded: Tensor, corrected: Tensor
) -> Tensor:
    """Of two choices of integers the one that costs less, row by row."""
    rows, columns = weight.shape
    step = max(1, _ROWS_ELEMENTS // max(1, columns))
    parts = []
    for start in range(0, rows, step):
        part, values = weight[start : start + step], grid.rows(start, start + step).values
        first, second = rounded[start : start + step], corrected[start : start + step]
        gains = error.of(values(second).sub_(part)) < error.of(values(first).sub_(part))
        parts.append(torch.where(gains[:, None], second, first))
    return torch.cat(parts).contiguous()


@contextlib.contextmanager
def _exact_products() -> Iterator[None]:
    """float32 products in float32, whatever the program has allowed torch before."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
