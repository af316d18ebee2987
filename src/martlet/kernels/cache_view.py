"""One layer of a static cache as a decode step sees it, whatever computes the step."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from martlet.quantization.vectors import KeysValues

__all__ = ["IDLE", "CacheView"]

IDLE = -1
"""The length of a slot that rests while others step."""


@dataclass(frozen=True, eq=False)
class CacheView:
    """Keys and values in their memory, and how many of them each slot holds before the step.

    Shapes:
        keys, values: (num_slots, num_kv_heads, capacity, head_dim), contiguous
        lengths: (num_slots,) int32; ``IDLE``: nothing is read from or written to the slot, and
            nobody looks at its result
    """

    keys: KeysValues
    values: KeysValues
    lengths: Tensor
