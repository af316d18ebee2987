"""Factors for input channels, so that the weights that matter most are rounded most finely.

The method of AWQ (arXiv 2306.00978): some channels carry far larger activations than others. Their
weights are multiplied before rounding, so that they are rounded more finely, and what makes the
channel is divided by the same factor, so that the float model stays as it was. Only where a factor
can be hidden in a norm or in the rows of another matrix is there anything to choose, and the table
of an architecture (``linear_inputs``) says where that is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.compression.gptq import squared_output
from martlet.compression.groups import quantize_groups
from martlet.models.architecture import LinearInput
from martlet.quantization.formats import WeightFormat

__all__ = ["Consumer", "best_factors", "fold", "rescale_hessian"]

_STEPS = 10
# Rows by which factors are judged, evenly spread: the error of a thousand stands for that of all.
_JUDGED_ROWS = 1024
_LEAST_FACTOR = 1e-4


@dataclass(frozen=True, eq=False)
class Consumer:
    """A matrix that reads the channels, and the format of groups that it is about to take.

    Shapes:
        weight: (out_features, in_features) float32
    """

    weight: Tensor
    format: WeightFormat


def best_factors(
    consumers: Sequence[Consumer], hessian: Tensor, magnitude: Tensor
) -> Tensor | None:
    """The factors of the channels with the least error in the consumers' outputs; None for 1.

    Tried are ``magnitude ** a / mean|w| ** b`` for a from 0 to 1, with b = 0 and b = 1 - a, each
    judged with the weights rounded to nearest.

    Shapes:
        hessian: (in_features, in_features) float32, the mean of x x.T
        magnitude: (in_features,) float32, the mean of |x|
        return: (in_features,) float32, greater than 0
    """
    judged = [_spread_rows(consumer) for consumer in consumers]
    one = torch.ones_like(magnitude)
    best, least = None, _cost(judged, hessian, one)
    for factors in _candidates(consumers, magnitude):
        cost = _cost(judged, hessian, factors)
        if cost < least:
            best, least = factors, cost
    return best


def fold(weights: dict[str, Tensor], source: LinearInput, factors: Tensor) -> None:
    """Multiply the consumers' columns and divide what makes the channels, in ``weights``.

    The tensors there are replaced, not changed in place.

    Shapes:
        factors: (in_features,) float32
    """
    assert source.producers, "nothing could take the factors"
    for name in source.consumers:
        weights[name] = weights[name] * factors
    first, last = source.first_row, source.first_row + len(factors)
    for name in source.producers:
        divided = weights[name].clone()
        shape = (-1, *[1] * (divided.dim() - 1))
        divided[first:last] /= factors.view(shape)
        weights[name] = divided


def rescale_hessian(hessian: Tensor, factors: Tensor) -> Tensor:
    """The Hessian of the input once it has been divided by the factors; changed in place."""
    return hessian.div_(factors).div_(factors[:, None])


def _spread_rows(consumer: Consumer) -> Consumer:
    rows = consumer.weight.shape[0]
    if rows <= _JUDGED_ROWS:
        return consumer
    picked = torch.linspace(0, rows - 1, _JUDGED_ROWS, device=consumer.weight.device).long()
    return Consumer(consumer.weight[picked], consumer.format)


def _candidates(consumers: Sequence[Consumer], magnitude: Tensor) -> list[Tensor]:
    total = torch.zeros_like(magnitude)
    for consumer in consumers:
        total += consumer.weight.abs().sum(0)
    mean_weight = total / sum(len(consumer.weight) for consumer in consumers)
    found = []
    for step in range(_STEPS + 1):
        a = step / _STEPS
        for b in dict.fromkeys((0.0, 1.0 - a)):
            factors = magnitude.clamp(min=1e-8) ** a / mean_weight.clamp(min=1e-8) ** b
            # The middle of their range is 1: nothing grows out of its type by them.
            factors = factors / (factors.max() * factors.min()).sqrt()
            found.append(factors.clamp(_LEAST_FACTOR, 1 / _LEAST_FACTOR))
    return found


def _cost(consumers: Sequence[Consumer], hessian: Tensor, factors: Tensor) -> float:
    """The summed mean square error of the outputs, by the rows that judge."""
    counts = hessian.diagonal() / factors.square()
    cost = 0.0
    for consumer in consumers:
        scaled = consumer.weight * factors
        rounded = quantize_groups(scaled, consumer.format, importance=counts).dequantize()
        cost += float(squared_output(rounded / factors - consumer.weight, hessian).sum())
    return cost
