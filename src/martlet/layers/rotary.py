"""Rotary positions: where a token stands turns its queries and keys.

Every pair of a head's components is turned by the token's position times the frequency of the
pair, so that the product of a query and a key depends on their distance alone.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels import ops
from martlet.layers.rope_scaling import Scaling

__all__ = ["Rotary", "Rotation", "rotation"]

_UNSCALED = Scaling()


@dataclass(frozen=True)
class Rotary:
    """How positions turn the first ``size`` components of heads.

    The frequency of pair p is theta**(-2p / size), or what ``scaling`` makes of it. A pair is the
    components p and p + size / 2, or 2p and 2p + 1 where ``is_interleaved``.
    """

    size: int
    theta: float = 10000.0
    scaling: Scaling = _UNSCALED
    is_interleaved: bool = False

    def __post_init__(self) -> None:
        assert self.size > 0
        assert self.size % 2 == 0

    def turn(self, num_positions: int, device: torch.device) -> ops.Turn:
        """What turns the heads of texts that have room for so many tokens."""
        return _turn(self, num_positions, device)


@functools.lru_cache(maxsize=64)
def _turn(rotary: Rotary, num_positions: int, device: torch.device) -> ops.Turn:
    """The same for every pass, so kept; computed on the host, so that all devices have its bits."""
    with torch.inference_mode(False):
        frequency = rotary.scaling.frequency(rotary.size, rotary.theta, num_positions)
        return ops.Turn(frequency.to(device), rotary.is_interleaved, rotary.scaling.factor)


@dataclass(frozen=True, eq=False)
class Rotation:
    """The angles of a pass, made once and used by every block; (batch or 1, 1, num_tokens, pairs).

    ``batch`` is 1 where all rows start alike.
    """

    cos: Tensor
    sin: Tensor
    is_interleaved: bool = False

    def turn(self, x: Tensor, norm: ops.Norm | None = None) -> Tensor:
        """Queries or keys turned to their positions, after the norm of each head if there is one.

        Shapes:
            x: (batch, num_heads, num_tokens, head_dim)
            return: the same
        """
        return ops.turn_heads(x, norm, self.cos, self.sin, self.is_interleaved)


def rotation(turn: ops.Turn, starts: Sequence[int], num_tokens: int) -> Rotation:
    """The rotation of tokens at ``start + i``.

    Shapes:
        starts: one a row

    Source:
        Su et al. 2021, section 3.4.2; frequencies and angles are float32, as in training.
    """
    device = turn.frequency.device
    first = starts[:1] if len(set(starts)) == 1 else starts
    start = torch.tensor(first, device=device)[:, None, None, None]
    position = start + torch.arange(num_tokens, device=device)[:, None]
    angle = position.to(torch.float32) * turn.frequency
    return Rotation(turn.factor * angle.cos(), turn.factor * angle.sin(), turn.is_interleaved)
