"""What a decode step computes beside products and attention: embedding, and the next token.

Every length is read on the device, so that one captured step serves all positions of a text.
``embed.cu`` and ``step.cu`` say how.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from martlet.kernels.cuda.driver import Kernel, load_kernels
from martlet.kernels.cuda.few_rows import ACTIVATION_TYPES
from martlet.kernels.cuda.linear_arguments import format_defines
from martlet.kernels.step_state import StepState
from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import TiledTensor

__all__ = ["embed", "finish_step", "most_probable"]


def embed(
    token_ids: Tensor,
    weight: TiledTensor,
    dtype: torch.dtype,
    positions: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """Rows of a tiled table, plus the row of a position table that each slot has come to.

    Shapes:
        token_ids: (rows,) int64
        positions: (num_positions, hidden_size) of ``dtype``
        lengths: (rows,) int32
        return: (rows, hidden_size)
    """
    (rows,), hidden_size = token_ids.shape, weight.shape[1]
    y = torch.empty((rows, hidden_size), dtype=dtype, device=token_ids.device)
    num_positions = 0
    if positions is not None:
        assert lengths is not None
        assert positions.dtype == dtype
        num_positions = positions.shape[0]
    _embed_kernel(y.device, dtype, weight.format)(
        (rows, 1, 1),
        256,
        token_ids,
        weight.data,
        weight.groups,
        weight.scale,
        positions,
        lengths,
        num_positions,
        y,
        hidden_size,
        dependent=True,
    )
    return y


def most_probable(logits: Tensor, suppressed: Tensor | None, state: StepState) -> None:
    """Choose the most probable token of each slot that is not suppressed.

    Shapes:
        logits: (num_slots, vocab_size) float32, contiguous
        suppressed: (vocab_size,) or (num_slots, vocab_size) bool, contiguous
    """
    num_slots, vocab_size = logits.shape
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    _step_kernel(logits.device, torch.float16, "most_probable")(
        (num_slots, 1, 1),
        1024,
        logits,
        suppressed,
        vocab_size if suppressed is not None and suppressed.ndim == 2 else 0,
        vocab_size,
        state.token_ids,
        state.logprobs,
        state.status,
        dependent=True,
    )


def finish_step(state: StepState, ending_ids: Tensor) -> None:
    """Note the chosen tokens, count them, and mark the slots whose text ends.

    Shapes:
        ending_ids: (num_ending,) int32
    """
    num_slots, capacity = state.output_ids.shape
    _step_kernel(state.token_ids.device, torch.float16, "finish_step")(
        (-(-num_slots // 32), 1, 1),
        32,
        state.token_ids,
        state.logprobs,
        state.lengths,
        state.num_output,
        state.output_ids,
        state.output_logprobs,
        capacity,
        state.is_done,
        ending_ids,
        ending_ids.shape[0],
        num_slots,
        dependent=True,
    )


@functools.lru_cache(maxsize=16)
def _embed_kernel(device: torch.device, dtype: torch.dtype, format: WeightFormat) -> Kernel:
    defines = {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype], **format_defines(format)}
    return load_kernels("embed", defines, device)["embed"]


@functools.lru_cache(maxsize=16)
def _step_kernel(device: torch.device, dtype: torch.dtype, name: str) -> Kernel:
    return load_kernels("step", {"ACTIVATION_TYPE": ACTIVATION_TYPES[dtype]}, device)[name]
