"""Attention of few queries on a processor, each by itself.

Rows of unequal length would be padded to the longest, and what is rounded then depends on the
neighbours. Here every query sees exactly its own keys, in place, so its result has the same bits
whatever is computed beside it; and a loop over rows takes no longer than the padded product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from martlet.kernels import ops

__all__ = ["are_few", "attend_each"]

# So many tokens a row are read as one after the other would be. More are a prompt, which one
# product is faster for.
_MOST_QUERIES = 8


def are_few(q: Tensor) -> bool:
    """Whether queries (batch, num_heads, num_queries, head_dim) are attended with one by one."""
    return q.device.type == "cpu" and q.shape[2] <= _MOST_QUERIES


def attend_each(
    q: Tensor,
    row: Callable[[int], tuple[Tensor, Tensor]],
    num_keys: Sequence[Sequence[int]],
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """What each query gathers from its own first keys; zeros for queries that are padding.

    ``row`` gives keys and values of a row, ``num_keys`` for each of its real queries how many of
    them it sees.

    Shapes:
        q: (batch, num_heads, num_queries, head_dim)
        row: (1, num_kv_heads, at least as many as are seen, head_dim), twice
        bias: (batch or 1, num_heads or 1, num_queries, at least as many as are seen)
        return: as q
    """
    mixed = torch.zeros_like(q)
    for index, counts in enumerate(num_keys):
        keys, values = row(index)
        first = index if bias is not None and bias.shape[0] > 1 else 0
        for query, count in enumerate(counts):
            own = None if bias is None else bias[first : first + 1, :, query : query + 1, :count]
            mixed[index : index + 1, :, query : query + 1] = ops.attention(
                q[index : index + 1, :, query : query + 1],
                keys[:, :, :count],
                values[:, :, :count],
                own,
                scale=scale,
            )
    return mixed
