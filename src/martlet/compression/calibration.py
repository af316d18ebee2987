"""What the inputs of a block's matrices look like: second moments and magnitudes, over samples."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from martlet.compression.walk import WalkBatch
from martlet.models.architecture import LinearInput, Stack
from martlet.quantization.scheme import ObservedWeight, Weight

__all__ = ["BlockObserver", "InputStatistics"]


class InputStatistics:
    """The sums over one input, on the device that computes; padding is left out by the caller."""

    def __init__(self, in_features: int, device: torch.device) -> None:
        self._moments = torch.zeros(in_features, in_features, device=device)
        self._magnitudes = torch.zeros(in_features, device=device)
        self._is_mean = False
        self.num_rows = 0

    def add(self, rows: Tensor) -> None:
        """Count some inputs.

        Shapes:
            rows: (num_rows, in_features), any float type
        """
        assert not self._is_mean
        rows = rows.to(torch.float32)
        self._moments.addmm_(rows.t(), rows)
        self._magnitudes += rows.abs().sum(0)
        self.num_rows += len(rows)

    def hessian(self) -> Tensor:
        """The mean of x x.T, (in_features, in_features) float32; nothing is counted after it."""
        if not self._is_mean:
            self._moments /= max(1, self.num_rows)
            self._is_mean = True
        return self._moments

    def magnitude(self) -> Tensor:
        """The mean of |x|, (in_features,) float32."""
        return self._magnitudes / max(1, self.num_rows)


class BlockObserver:
    """Gathers the statistics of all inputs of one block while samples go through it.

    Of the matrices that share an input the first one is observed. ``begin`` is for ``Walk.run``.
    """

    def __init__(self, inputs: Sequence[LinearInput], stack: Stack, device: torch.device) -> None:
        self._inputs = tuple(inputs)
        self._stack: Stack = stack
        self._device = device
        self._is_real: dict[bool, Tensor] = {}
        self.statistics: dict[LinearInput, InputStatistics] = {}

    def observed(self, weights: Mapping[str, Weight]) -> dict[str, Weight]:
        """The weights of the block to run with."""
        wrapped = dict(weights)
        for source in self._inputs:
            name = source.consumers[0]
            weight = weights[name]
            assert not isinstance(weight, ObservedWeight)
            self.statistics[source] = InputStatistics(weight.shape[1], self._device)
            wrapped[name] = ObservedWeight(weight, functools.partial(self._see, source))
        return wrapped

    def begin(self, batch: WalkBatch) -> None:
        """Take note of which tokens of the batch that comes now are no padding."""
        stacks: dict[bool, Stack] = {False: self._stack}
        if any(source.is_encoder_output for source in self._inputs):
            stacks[True] = "encoder"
        self._is_real = {
            key: batch.is_real(stack).flatten().to(self._device) for key, stack in stacks.items()
        }

    def _see(self, source: LinearInput, rows: Tensor) -> None:
        self.statistics[source].add(rows[self._is_real[source.is_encoder_output]])
