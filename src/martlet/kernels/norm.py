"""The parameters of a normalisation as one value, to hand to an operation that starts with it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Norm"]


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm; a root mean square norm where ``bias`` is None.

    Shapes:
        weight, bias: (hidden_size,)
    """

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __post_init__(self) -> None:
        assert self.weight.dim() == 1
        assert self.bias is None or self.bias.shape == self.weight.shape
