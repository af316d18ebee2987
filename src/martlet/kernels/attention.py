"""Attention of passes, by torch's own kernels; ``ops.attention`` says what it computes."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

__all__ = ["attention"]


def attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, is_causal: bool
) -> Tensor:
    """See ``ops.attention``; shapes are checked there."""
    if q.is_cuda and torch.backends.cuda.cudnn_sdp_enabled():  # type: ignore[no-untyped-call]
        return _without_cudnn(q, k, v, bias, scale, is_causal)
    return F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=bias,
        scale=scale,
        is_causal=is_causal,
        enable_gqa=q.shape[1] != k.shape[1],
    )


def _without_cudnn(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, is_causal: bool
) -> Tensor:
    """CuDNN plans anew for every length that it has not seen: 70 ms on an H200, at every new text.

    Its switch is one for the process, so it is put back.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        return attention(q, k, v, bias, scale, is_causal)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
