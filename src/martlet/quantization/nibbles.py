"""Two integers of 4 bits in a byte, as files hold them: input 2 j in the lower half of byte j."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

__all__ = ["pack_nibbles", "unpack_nibbles"]


def pack_nibbles(values: Tensor) -> Tensor:
    """Integers from 0 to 15 in half the bytes; an odd last one stands alone.

    Shapes:
        values: (rows, columns) uint8
        return: (rows, ceil(columns / 2)) uint8
    """
    assert values.dtype == torch.uint8
    if values.shape[1] % 2:
        values = F.pad(values, (0, 1))
    return values[:, 0::2] | values[:, 1::2] << 4


def unpack_nibbles(data: Tensor, columns: int) -> Tensor:
    """What ``pack_nibbles`` was given.

    Shapes:
        data: (rows, ceil(columns / 2)) uint8
        return: (rows, columns) uint8
    """
    both = torch.stack((data & 15, data >> 4), dim=-1)
    return both.view(data.shape[0], -1)[:, :columns]
