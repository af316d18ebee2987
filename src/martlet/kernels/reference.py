"""What each operation means, in plain torch: the definition that other bodies are tested by.

Written to be read, not to be fast. Statistics and softmax are taken in float32 whatever the
activation dtype is; the result comes back in the activation dtype.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from martlet.quantization.scheme import QuantizedTensor, TiledTensor, Weight

__all__ = [
    "attention",
    "dense",
    "embedding",
    "gelu",
    "gelu_tanh",
    "layer_norm",
    "linear",
    "rms_norm",
    "rotary",
    "silu",
]


def dense(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight as a float tensor of the given dtype."""
    if isinstance(weight, QuantizedTensor | TiledTensor):
        return weight.dequantize(dtype)
    return weight.to(dtype)


def linear(x: Tensor, weight: Weight, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, the weight taken at the precision of ``x``."""
    y = x @ dense(weight, x.dtype).T
    return y if bias is None else y + bias.to(x.dtype)


def embedding(weight: Weight, token_ids: Tensor, dtype: torch.dtype) -> Tensor:
    """The rows of ``weight`` that ``token_ids`` names."""
    return dense(weight, dtype)[token_ids]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Every row moved to mean 0, scaled to variance 1, then ``* weight + bias``."""
    wide = x.float()
    mean = wide.mean(-1, keepdim=True)
    variance = (wide - mean).square().mean(-1, keepdim=True)
    normal = (wide - mean) / (variance + eps).sqrt()
    return (normal * weight.float() + bias.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Every row over its root mean square, rounded to the dtype of ``x``, then ``* weight``."""
    wide = x.float()
    normal = wide / (wide.square().mean(-1, keepdim=True) + eps).sqrt()
    return normal.to(x.dtype) * weight.to(x.dtype)


def gelu_tanh(x: Tensor) -> Tensor:
    """The tanh approximation of GELU ("gelu_new" in checkpoints)."""
    wide = x.float()
    inner = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1.0 + inner.tanh())).to(x.dtype)


def gelu(x: Tensor) -> Tensor:
    """GELU by the error function."""
    wide = x.float()
    return (0.5 * wide * (1.0 + torch.erf(wide / math.sqrt(2.0)))).to(x.dtype)


def silu(x: Tensor) -> Tensor:
    """``x`` times its logistic function."""
    wide = x.float()
    return (wide / (1.0 + (-wide).exp())).to(x.dtype)


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Components p and p + head_dim / 2 as a complex number, times ``cos + i sin``."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half].float(), x[..., half:].float()) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float,
    is_causal: bool = False,
) -> Tensor:
    """``softmax(q @ k.T * scale + bias) @ v``; causal hides the keys after each query.

    Each head of ``k`` and ``v`` serves as many neighbouring heads of ``q`` as there are to each.
    """
    share = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
    scores = (q.float() @ k.float().transpose(-1, -2)) * scale
    if bias is not None:
        scores = scores + bias.float()
    if is_causal:
        num_queries, num_keys = scores.shape[-2:]
        hidden = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    return (scores.softmax(-1) @ v.float()).to(q.dtype)
