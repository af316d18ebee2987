"""Rotary positions as Llama uses them: where a token stands turns its queries and keys.

Every pair of a head's components is turned by the token's position times the frequency of the
pair, so that the product of a query and a key depends on their distance alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels import ops

__all__ = ["Rotation", "frequencies", "rotation"]


@dataclass(frozen=True)
class Rotation:
    """The angles of a pass, made once and used by every block; (batch or 1, 1, num_tokens, pairs).

    ``batch`` is 1 where all rows start alike.
    """

    cos: Tensor
    sin: Tensor

    def turn(self, x: Tensor) -> Tensor:
        """Queries or keys turned to their positions.

        Shapes:
            x: (batch, num_heads, num_tokens, head_dim)
            return: the same
        """
        return ops.rotary(x, self.cos, self.sin)


def rotation(
    starts: Sequence[int], num_tokens: int, head_dim: int, theta: float, device: torch.device
) -> Rotation:
    """The rotation of tokens at ``start + i``; pair p of a head has frequency theta**(-2p / dim).

    Shapes:
        starts: one a row

    Source:
        Su et al. 2021, section 3.4.2; frequencies and angles are float32, as in training.
    """
    first = starts[:1] if len(set(starts)) == 1 else starts
    start = torch.tensor(first, device=device)[:, None, None, None]
    position = start + torch.arange(num_tokens, device=device)[:, None]
    angle = position.to(torch.float32) * frequencies(head_dim, theta, device)
    return Rotation(angle.cos(), angle.sin())


def frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """What a position is multiplied by for each pair of a head, (head_dim / 2,) float32."""
    assert head_dim % 2 == 0
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim
    return 1.0 / theta**exponent
