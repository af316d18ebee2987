"""How rotary positions turn the queries and keys of a decode step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Turn"]


@dataclass(frozen=True, eq=False)
class Turn:
    """The frequencies of the turned components of a head; those behind them stay as they are.

    A pair is the components p and p + num_pairs, or 2p and 2p + 1 where ``is_interleaved``.
    ``factor`` multiplies cosine and sine.

    Shapes:
        frequency: (num_pairs,) float32, at most half of head_dim
    """

    frequency: Tensor
    is_interleaved: bool = False
    factor: float = 1.0

    def __post_init__(self) -> None:
        assert self.frequency.dim() == 1
