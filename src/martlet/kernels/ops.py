"""The only door to computation: one function an operation, each checked against ``reference``.

Every function takes activations of one float dtype and gives that dtype back. Weights may be
stored in another one (float16 from the disk under a float32 activation) or quantised; they are
brought over tile by tile, so callers need not cast them. Shapes are our own promise here, files
have been checked before: hence asserts.

Norm, activation and residual are parts of the products that they stand beside, because a card
computes them there without another pass over memory. Whatever a body fuses, it means the steps of
``reference`` in their order.
"""

from __future__ import annotations

from torch import Tensor

from martlet.kernels import attention as pass_attention
from martlet.kernels.cuda.driver import break_launch_chain
from martlet.kernels.norm import Norm
from martlet.kernels.pointwise import (
    ACTIVATIONS,
    add_norm,
    gelu,
    gelu_tanh,
    norm,
    relu,
    rotary,
    silu,
    turn_heads,
)
from martlet.kernels.products import embedding, gated_linear, linear, linears, logits
from martlet.kernels.steps import (
    finish_step,
    most_probable,
    sample,
    step_attention,
    step_embedding,
)
from martlet.kernels.turn import Turn
from martlet.quantization.vectors import KeysValues

__all__ = [
    "ACTIVATIONS",
    "Norm",
    "Turn",
    "add_norm",
    "attention",
    "break_launch_chain",
    "embedding",
    "finish_step",
    "gated_linear",
    "gelu",
    "gelu_tanh",
    "linear",
    "linears",
    "logits",
    "most_probable",
    "norm",
    "relu",
    "rotary",
    "sample",
    "silu",
    "step_attention",
    "step_embedding",
    "turn_heads",
]


def attention(  # noqa: PLR0913  (one a part of the formula)
    q: Tensor,
    k: KeysValues,
    v: KeysValues,
    bias: Tensor | None = None,
    *,
    scale: float,
    is_causal: bool = False,
    softcap: float | None = None,
) -> Tensor:
    """``softmax(cap(q @ k.T * scale) + bias) @ v``, where cap(s) = softcap * tanh(s / softcap).

    Shapes:
        q: (batch, num_heads, num_queries, head_dim)
        k, v: (batch, num_kv_heads, num_keys, head_dim), both float or both int8; each head serves
            num_heads / num_kv_heads neighbouring heads of q
        bias: broadcastable to (batch, num_heads, num_queries, num_keys); added after the scale
        return: (batch, num_heads, num_queries, head_dim)

    ``is_causal`` hides the keys after each query; it needs as many keys as queries and no bias.
    Without ``softcap`` scores are not capped.
    """
    assert k.shape == v.shape
    assert (q.shape[0], q.shape[3]) == (k.shape[0], k.shape[3])
    assert q.shape[1] % k.shape[1] == 0
    assert not is_causal or (bias is None and q.shape[2] == k.shape[2])
    if softcap is None:
        return pass_attention.attention(q, k, v, bias, scale, is_causal)
    return pass_attention.capped_attention(q, k, v, bias, scale, is_causal, softcap)
