"""The choice of the next token by chance on the GPU; ``sample.cu`` says how."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from martlet.kernels.cuda.driver import Kernel, load_kernels
from martlet.kernels.sample_state import SampleState
from martlet.kernels.step_state import StepState

__all__ = ["sample"]

_MAX_VOCAB_SIZE = 1 << 20  # as many weights of the best token fit into the sum of all


def sample(
    logits: Tensor, suppressed: Tensor | None, sampling: SampleState, state: StepState
) -> None:
    """Choose the next token of each slot by its settings, and count it.

    Shapes:
        logits: (num_slots, vocab_size) float32, contiguous
        suppressed: (vocab_size,) or (num_slots, vocab_size) bool, contiguous
    """
    num_slots, vocab_size = logits.shape
    assert logits.dtype == torch.float32
    assert logits.is_contiguous()
    assert vocab_size <= _MAX_VOCAB_SIZE
    assert sampling.scores.shape == logits.shape
    _kernel(logits.device)(
        (num_slots, 1, 1),
        1024,
        logits,
        suppressed,
        vocab_size if suppressed is not None and suppressed.ndim == 2 else 0,
        vocab_size,
        sampling.settings,
        sampling.output_counts,
        sampling.seen,
        sampling.uniforms,
        sampling.uniforms.shape[1],
        sampling.num_drawn,
        state.is_done,
        sampling.scores,
        sampling.weights,
        state.token_ids,
        state.logprobs,
        state.status,
        dependent=True,
    )


@functools.lru_cache(maxsize=16)
def _kernel(device: torch.device) -> Kernel:
    return load_kernels("sample", {}, device)["sample"]
