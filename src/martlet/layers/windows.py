"""Attention of passes that are longer than the window of their layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from martlet.layers.masks import aligned_bias, causal_bias
from martlet.quantization.vectors import KeysValues

__all__ = ["attend_within"]

# So many queries share a mask: enough for a product to be efficient, and few enough that what it
# computes beside the window stays little.
_QUERIES_AT_ONCE = 1024


def attend_within(
    window: int,
    q: Tensor,
    keys_values: tuple[KeysValues, KeysValues],
    starts: Sequence[int],
    attend: Callable[[Tensor, KeysValues, KeysValues, Tensor], Tensor],
) -> Tensor:
    """What each query gathers from the last ``window`` keys, its own included.

    Some queries at a time look at the keys that any of them sees, so memory and work grow with the
    length of the pass and not with its square.

    Shapes:
        q: (batch, num_heads, num_queries, head_dim)
        keys_values: (batch, num_kv_heads, num_keys, head_dim), twice
        starts: position of the first query of each row
        return: as q
    """
    keys, values = keys_values
    num_keys, mixed = keys.shape[2], []
    for first in range(0, q.shape[2], _QUERIES_AT_ONCE):
        queries = q[:, :, first : first + _QUERIES_AT_ONCE]
        count = queries.shape[2]
        low = max(0, min(starts) + first - window + 1)
        high = min(num_keys, max(starts) + first + count)
        places = [start + first - low for start in starts]
        bias = aligned_bias(causal_bias(places, count, high - low, q, window))
        mixed.append(attend(queries, keys[:, :, low:high], values[:, :, low:high], bias))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)
