"""The parameters of a normalisation as one value, to hand to an operation that starts with it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Norm"]


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer norm; a root mean square norm where ``bias`` is None.

    What is multiplied is ``offset + weight``: Gemma's checkpoints keep the difference to 1. With an
    offset the product is taken in float32 and rounded once.

    Shapes:
        weight, bias: (hidden_size,)
    """

    weight: Tensor
    bias: Tensor | None
    eps: float
    offset: float = 0.0

    def __post_init__(self) -> None:
        assert self.weight.dim() == 1
        assert self.bias is None or self.bias.shape == self.weight.shape
