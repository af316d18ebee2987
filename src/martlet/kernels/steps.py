"""Operations of a decode step whose lengths are read on the device: see ``ops``, their door."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from martlet.kernels import reference, reference_choice
from martlet.kernels.cache_view import CacheView
from martlet.kernels.cuda import attention, decode, sampling
from martlet.kernels.norm import Norm
from martlet.kernels.products import embedding
from martlet.kernels.sample_state import SampleState
from martlet.kernels.step_state import StepState
from martlet.kernels.turn import Turn
from martlet.quantization.scheme import TiledTensor, Weight

__all__ = ["finish_step", "most_probable", "sample", "step_attention", "step_embedding"]


def step_embedding(
    weight: Weight, token_ids: Tensor, dtype: torch.dtype, positions: Tensor, places: Tensor
) -> Tensor:
    """The rows of two tables together: by token, and by the place that each slot has come to.

    Shapes:
        weight: (num_embeddings, hidden_size), float or int8
        token_ids: (num_slots, 1) int64
        positions: (num_positions, hidden_size)
        places: (num_slots,) int32; the first and last position stand for all beyond
        return: (num_slots, 1, hidden_size)
    """
    if token_ids.is_cuda and isinstance(weight, TiledTensor) and positions.dtype == dtype:
        return decode.embed(token_ids[:, 0], weight, dtype, positions, places)[:, None]
    known = places.clamp(0, positions.shape[0] - 1).to(torch.int64)[:, None]
    return embedding(weight, token_ids, dtype) + embedding(positions, known, dtype)


def step_attention(  # noqa: PLR0913  (one a part of what is fused)
    qkv: Sequence[Tensor | None],
    cache: CacheView,
    scale: float,
    bias: Tensor | None = None,
    turn: Turn | None = None,
    *,
    norms: tuple[Norm, Norm] | None = None,
    softcap: float | None = None,
    window: int | None = None,
) -> Tensor:
    """Attention of one new token a slot over a cache whose lengths are read on the device.

    The new keys and values are written into the cache; without them (None) the cache stays as it
    is, as in cross attention. ``norms`` are those of each head's query and key, ``turn`` turns both
    after that as ``rotary`` does. ``softcap`` caps scores as in ``attention``. Of the keys, the
    new one included, the last ``window`` are seen.

    Shapes:
        qkv: queries (num_slots, num_heads * head_dim), keys and values
            (num_slots, num_kv_heads * head_dim)
        bias: (num_heads, num_distances) float32 by the distance to the key, the last for all beyond
        norms: weights (head_dim,)
        return: (num_slots, num_heads * head_dim)
    """
    q, k, v = qkv
    assert q is not None
    assert k is not None or (turn is None and norms is None and window is None)
    if attention.can_attend(q, cache.keys.shape[3], turn):
        return attention.attention(
            (q, k, v), cache, scale, bias, turn, norms=norms, softcap=softcap, window=window
        )
    return reference.step_attention(
        qkv, cache, scale, bias, turn, norms=norms, softcap=softcap, window=window
    )


def most_probable(logits: Tensor, suppressed: Tensor | None, state: StepState) -> None:
    """Choose the most probable token of each slot that may be chosen, the first among equals.

    Its log-probability is that among all tokens. A logit that is not finite sets the status.

    Shapes:
        logits: (num_slots, vocab_size) float32
        suppressed: (vocab_size,), or a row a slot (num_slots, vocab_size), bool, True = must not
            be chosen
    """
    if logits.is_cuda:
        decode.most_probable(logits, suppressed, state)
    else:
        reference_choice.most_probable(logits, suppressed, state)


def sample(
    logits: Tensor, suppressed: Tensor | None, chances: SampleState, state: StepState
) -> None:
    """Choose the next token of each slot by the slot's own settings, and count it there.

    Order: suppressed tokens, repetition penalty, presence and frequency penalty, temperature,
    top-k, top-p, min-p, one draw; of equal tokens the lower id comes first everywhere. With
    temperature 0 nothing is drawn. The log-probability is that among all tokens, before all this;
    it is not a number where a logit is not finite, and -inf where all tokens are suppressed.

    Shapes:
        logits: (num_slots, vocab_size) float32
        suppressed: (vocab_size,), or a row a slot (num_slots, vocab_size), bool, True = must not
            be chosen
    """
    if logits.is_cuda:
        sampling.sample(logits, suppressed, chances, state)
    else:
        reference_choice.sample(logits, suppressed, chances, state)


def finish_step(state: StepState, ending_ids: Tensor) -> None:
    """Note the chosen tokens, count them, and mark the slots whose text they end.

    Shapes:
        ending_ids: (num_ending,) int32
    """
    if ending_ids.is_cuda:
        decode.finish_step(state, ending_ids)
    else:
        reference_choice.finish_step(state, ending_ids)
