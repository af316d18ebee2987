"""One pass over a stack of a model."""

from __future__ import annotations

from torch import Tensor

from martlet.layers.decoder_cache import DecoderCache
from martlet.memory.executor import Executor
from martlet.memory.plan import Phase
from martlet.models.architecture import Architecture, Stack

__all__ = ["pass_threads", "run_stack"]

# A pass over so few tokens is bound by reading the weights, as a single decode step is.
_DECODE_TOKENS = 8


def run_stack(
    architecture: Architecture,
    executor: Executor,
    phase: Phase,
    rows: Tensor,
    cache: DecoderCache | None = None,
    lengths: Tensor | None = None,
) -> Tensor:
    """The hidden state that leaves the last block of the stack of a phase.

    "encode" is the encoder's; in the others the decoder goes on from ``cache`` and fills it.

    Shapes:
        rows: (batch, num_tokens) int64, padded at the right
        lengths: (batch,) int64, real tokens of each row; None = all
        return: (batch, num_tokens, hidden_size)
    """
    stack: Stack = "encoder" if phase == "encode" else "decoder"
    hidden, step = architecture.embed(executor.fixed(), stack, rows, cache, lengths)
    for index, weights in executor.blocks(phase):
        hidden = architecture.block(stack, index, weights, hidden, step, cache)
    return hidden


def pass_threads(executor: Executor, num_tokens: int) -> int:
    """Threads of the CPU for a pass over so many tokens, of all its rows together."""
    plan = executor.plan
    return plan.decode_threads if num_tokens <= _DECODE_TOKENS else plan.num_threads
