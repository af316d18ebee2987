"""What attention layers share: heads in and out, and masks as additive biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "causal_bias",
    "decoder_mask",
    "hidden_value",
    "merge_heads",
    "padding_bias",
    "split_heads",
]


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """A view with one head an axis.

    Shapes:
        x: (batch, num_tokens, num_heads * head_dim)
        return: (batch, num_heads, num_tokens, head_dim)
    """
    batch, num_tokens, width = x.shape
    return x.view(batch, num_tokens, num_heads, width // num_heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """The opposite of ``split_heads``.

    Shapes:
        x: (batch, num_heads, num_tokens, head_dim)
        return: (batch, num_tokens, num_heads * head_dim)
    """
    return x.transpose(1, 2).flatten(2)


def hidden_value(dtype: torch.dtype) -> float:
    """The bias of a key that must not be seen.

    Finite, so that a row without any visible key (an idle slot) gives numbers nobody reads, not
    NaN; and half of the smallest number, so that a negative score on top does not reach -inf.
    """
    return torch.finfo(dtype).min / 2


def causal_bias(starts: Sequence[int], num_queries: int, num_keys: int, like: Tensor) -> Tensor:
    """Hides the keys after each query; query i of a row stands at position ``start + i``.

    A padding query sees the keys up to its own position too: what it gives is never read.

    Shapes:
        starts: one a row
        return: (batch or 1, 1, num_queries, num_keys); 1 when all rows start alike
    """
    first = starts[:1] if len(set(starts)) == 1 else starts
    start = torch.tensor(first, device=like.device)[:, None, None, None]
    position = start + torch.arange(num_queries, device=like.device)[:, None]
    hidden = torch.arange(num_keys, device=like.device) > position
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
    return causal_bias(starts, num_queries, num_keys, like), False


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
