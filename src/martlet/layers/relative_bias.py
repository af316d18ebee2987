"""Relative position bias as T5, CPM-2 and EVA use it.

A table holds one number for each head and bucket of distances. Near distances have a bucket each,
far ones share buckets on a logarithmic scale, all beyond ``max_distance`` share the last. One bias
is computed for a pass and used by every block of the stack.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.kernels import ops

__all__ = ["RelativeBuckets", "bias_by_distance", "relative_bias"]


@dataclass(frozen=True)
class RelativeBuckets:
    """How distances fall into buckets.

    ``is_bidirectional`` gives keys after the query the upper half of the buckets; otherwise they
    share bucket 0 with the query's own position (a causal stack never sees them).
    """

    num_buckets: int
    max_distance: int
    is_bidirectional: bool

    def bucket(self, relative: Tensor) -> Tensor:
        """Bucket of each relative position (key position minus query position).

        Shapes:
            relative: (...) int64
            return: (...) int64

        Source:
            Raffel et al. 2020, section 2.1; boundaries as in the T5 code, which takes the logarithm
            in float32.
        """
        num_buckets = self.num_buckets
        offset = torch.zeros_like(relative)
        if self.is_bidirectional:
            num_buckets //= 2
            offset = (relative > 0).to(torch.int64) * num_buckets
            distance = relative.abs()
        else:
            distance = (-relative).clamp(min=0)
        num_exact = num_buckets // 2
        ratio = torch.log(distance.clamp(min=1).to(torch.float32) / num_exact)
        far = ratio / math.log(self.max_distance / num_exact) * (num_buckets - num_exact)
        far_bucket = (num_exact + far.to(torch.int64)).clamp(max=num_buckets - 1)
        return offset + torch.where(distance < num_exact, distance, far_bucket)


@functools.lru_cache(maxsize=64)
def _bucket_row(buckets: RelativeBuckets, reach: int, device: torch.device) -> Tensor:
    """Buckets of the relative positions -reach..reach, int64; the same for every pass."""
    with torch.inference_mode(False):
        return buckets.bucket(torch.arange(-reach, reach + 1, device=device))


def relative_bias(
    table: Tensor,
    buckets: RelativeBuckets,
    starts: Sequence[int],
    num_queries: int,
    num_keys: int,
) -> Tensor:
    """The bias of every head for queries at ``start + i`` and keys at 0, 1, ... .

    Shapes:
        table: (num_buckets, num_heads)
        starts: one a row
        return: (batch or 1, num_heads, num_queries, num_keys), dtype of ``table``; 1 when all rows
            start alike
    """
    first = starts[:1] if len(set(starts)) == 1 else starts
    # Doubling keeps the number of different rows in the cache small while a text grows.
    reach = 1 << (max(*starts, 0) + num_queries + num_keys).bit_length()
    row = _bucket_row(buckets, reach, table.device)
    windows = []
    for start in first:
        # Query i needs the relative positions -(start + i) .. num_keys - 1 - (start + i).
        low = reach - (start + num_queries - 1)
        span = row[low : low + num_queries - 1 + num_keys]
        windows.append(span.unfold(0, num_keys, 1).flip(0))  # (num_queries, num_keys)
    bias = ops.embedding(table, torch.stack(windows), table.dtype)
    return bias.permute(0, 3, 1, 2).contiguous()


def bias_by_distance(table: Tensor, buckets: RelativeBuckets) -> Tensor:
    """The bias of a causal stack by how far a key lies before the query; the last for all beyond.

    Shapes:
        table: (num_buckets, num_heads)
        return: (num_heads, max_distance + 1) float32
    """
    assert not buckets.is_bidirectional
    distance = torch.arange(buckets.max_distance + 1, device=table.device)
    return table[buckets.bucket(-distance)].to(torch.float32).t().contiguous()
