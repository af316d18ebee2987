"""Attention of few queries on a processor, each by itself.

Rows of unequal length would be padded to the longest, and what is rounded then depends on the
neighbours. Here every query sees exactly its own keys, in place, so its result has the same bits
whatever is computed beside it; and a loop over rows takes no longer than the padded product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from martlet.quantization.vectors import KeysValues

__all__ = ["are_few", "attend_each"]

# So many tokens a row are read as one after the other would be. More are a prompt, which one
# product is faster for.
_MOST_QUERIES = 8


def are_few(q: Tensor) -> bool:
    """Whether queries (batch, num_heads, num_queries, head_dim) are attended with one by one."""
    return q.device.type == "cpu" and q.shape[2] <= _MOST_QUERIES


def attend_each(
    q: Tensor,
    keys_values: Callable[[int, int], tuple[KeysValues, KeysValues]],
    num_keys: Sequence[Sequence[int]],
    bias: Tensor | None,
    attend: Callable[[Tensor, KeysValues, KeysValues, Tensor | None], Tensor],
    window: int | None = None,
) -> Tensor:
    """What each query gathers from its own first keys; zeros for queries that are padding.

    ``keys_values`` gives the first keys and values of a row, ``num_keys`` for each of its real
    queries how many of them it sees; with a ``window`` the last so many of these.

    Shapes:
        q: (batch, num_heads, num_queries, head_dim)
        keys_values: (1, num_kv_heads, as many as asked for, head_dim), twice
        bias: (batch or 1, num_heads or 1, num_queries, at least as many as are seen)
        return: as q
    """

    def attend_one(row: int, place: int, query: Tensor) -> Tensor:
        count = num_keys[row][place]
        keys, values = keys_values(row, count)
        own = None
        if bias is not None:
            first = row if bias.shape[0] > 1 else 0
            own = bias[first : first + 1, :, place : place + 1, :count]
        if window is not None and count > window:
            keys, values = keys[:, :, count - window :], values[:, :, count - window :]
            own = None if own is None else own[..., count - window :]
        return attend(query, keys, values, own)

    if q.shape[0] == q.shape[2] == 1 and num_keys[0]:
        return attend_one(0, 0, q)  # a text alone: nothing to take apart or to join
    rows = []
    for row, own_queries in enumerate(torch.split(q, 1)):
        mixed = [
            attend_one(row, place, query) if place < len(num_keys[row]) else torch.zeros_like(query)
            for place, query in enumerate(torch.split(own_queries, 1, dim=2))
        ]
        rows.append(mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2))
    return rows[0] if len(rows) == 1 else torch.cat(rows)
