"""Masks as additive biases: what a query must not see gets a very negative number."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

__all__ = ["aligned_bias", "causal_bias", "decoder_mask", "hidden_value", "padding_bias"]


def hidden_value(dtype: torch.dtype) -> float:
    """The bias of a key that must not be seen.

    Finite, so that a row without any visible key (an idle slot) gives numbers nobody reads, not
    NaN; and half of the smallest number, so that a negative score on top does not reach -inf.
    """
    return torch.finfo(dtype).min / 2


def causal_bias(
    starts: Sequence[int], num_queries: int, num_keys: int, like: Tensor, window: int | None = None
) -> Tensor:
    """Hides the keys after each query; query i of a row stands at position ``start + i``.

    With a window it hides all but the last ``window`` keys up to the query's own, too. A padding
    query sees the keys up to its own position too: what it gives is never read.

    Shapes:
        starts: one a row
        return: (batch or 1, 1, num_queries, num_keys); 1 when all rows start alike
    """
    first = starts[:1] if len(set(starts)) == 1 else starts
    start = torch.tensor(first, device=like.device)[:, None, None, None]
    position = start + torch.arange(num_queries, device=like.device)[:, None]
    keys = torch.arange(num_keys, device=like.device)
    hidden = keys > position
    if window is not None:
        hidden |= keys <= position - window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
        hidden, hidden_value(like.dtype)
    )


def decoder_mask(
    starts: Sequence[int], num_queries: int, num_keys: int, like: Tensor
) -> tuple[Tensor | None, bool]:
    """What ``ops.attention`` takes as bias and ``is_causal`` for a decoder without encoder.

    The bias is that of ``causal_bias``; None where the flag, or nothing at all, does the same.
    """
    if len(set(starts)) == 1:
        if num_queries == 1:
            return None, False  # every row sees all its keys
        if starts[0] == 0 and num_keys == num_queries:
            return None, True
    return aligned_bias(causal_bias(starts, num_queries, num_keys, like)), False


_ALIGNED_ELEMENTS = 8


def aligned_bias(bias: Tensor) -> Tensor:
    """The same bias, on a GPU with gaps between its rows so that each begins where vectors may.

    Attention would make such a copy itself, in every layer.

    Shapes:
        bias: (..., num_keys)
        return: the same
    """
    num_keys = bias.shape[-1]
    if not bias.is_cuda or num_keys % _ALIGNED_ELEMENTS == 0:
        return bias
    return F.pad(bias, (0, -num_keys % _ALIGNED_ELEMENTS))[..., :num_keys]


def padding_bias(lengths: Sequence[int], num_keys: int, like: Tensor) -> Tensor | None:
    """Hides the keys after each row's length; None when there are none.

    Shapes:
        lengths: one a row
        return: (batch, 1, 1, num_keys)
    """
    if all(length == num_keys for length in lengths):
        return None
    limit = torch.tensor(lengths, device=like.device)[:, None, None, None]
    hidden = torch.arange(num_keys, device=like.device) >= limit
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(
        hidden, hidden_value(like.dtype)
    )
