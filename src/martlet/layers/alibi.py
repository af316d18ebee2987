"""Attention with linear biases, as BLOOM uses it: a score falls with the distance to the key.

Every head has a slope of its own; positions come in nowhere else.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["alibi_bias", "alibi_by_distance", "alibi_slopes"]


def alibi_slopes(num_heads: int) -> list[float]:
    """What each head takes off a score for every token between query and key.

    For n heads, a power of two, they are 2**(-8 / n), 2**(-16 / n), ... 2**-8. What another number
    has beyond the power of two below it comes from between those: every second slope of twice as
    many heads.

    Source:
        Press et al. 2022, section 3, and its published code for numbers that are no power of two.
    """
    whole = 1 << (num_heads.bit_length() - 1)
    slopes = [2.0 ** (-8 * (head + 1) / whole) for head in range(whole)]
    between = [2.0 ** (-4 * (2 * extra + 1) / whole) for extra in range(num_heads - whole)]
    return slopes + between


def alibi_by_distance(num_heads: int, num_distances: int, device: torch.device) -> Tensor:
    """The bias of each head by how far a key lies before the query, (num_heads, num_distances)."""
    slopes = torch.tensor(alibi_slopes(num_heads), device=device)
    return -slopes[:, None] * torch.arange(num_distances, device=device)


def alibi_bias(
    num_heads: int, starts: Sequence[int], num_queries: int, num_keys: int, like: Tensor
) -> Tensor:
    """The bias of every head for queries at ``start + i`` and keys at 0, 1, ... .

    Keys after a query get a positive number, which only a mask on top makes right. What is rounded
    to the type of ``like`` is the bias itself, so that near keys, which count, stay exact.

    Shapes:
        starts: one a row
        return: (batch or 1, num_heads, num_queries, num_keys); 1 when all rows start alike
    """
    first = starts[:1] if len(set(starts)) == 1 else starts
    slopes = torch.tensor(alibi_slopes(num_heads), device=like.device)[:, None, None]
    start = torch.tensor(first, device=like.device)[:, None, None, None]
    position = start + torch.arange(num_queries, device=like.device)[:, None]
    distance = position - torch.arange(num_keys, device=like.device)
    return (-slopes * distance).to(like.dtype)
