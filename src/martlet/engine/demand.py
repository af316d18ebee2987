"""What generation needs beside the weights, before a plan is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from martlet.kernels.cuda.gemm_route import most_panel_bytes
from martlet.memory.plan import Demand
from martlet.models.architecture import Architecture

__all__ = ["Lengths", "estimate_demand"]

_CPU_FLOOR_BYTES = 64 << 20  # tiles of int8 weights, logits of a chunk, torch's own
_GPU_FLOOR_BYTES = 96 << 20  # the float library's workspace is 32 MiB, the rest torch cannot reuse


@dataclass(frozen=True)
class Lengths:
    """Tokens that memory is planned for, in each of ``batch`` sequences.

    ``pass_tokens`` is the longest pass: the encoder's input, or a prompt.
    """

    batch: int
    pass_tokens: int
    decoder_tokens: int
    encoder_tokens: int


def estimate_demand(
    architecture: Architecture,
    lengths: Lengths,
    dtype: torch.dtype,
    capability: tuple[int, int] | None,
) -> Demand:
    """Cache and an upper estimate of the activations; ``capability`` None is the CPU."""
    tensors = [tensor for spec in architecture.block_specs() for tensor in spec.tensors]
    widest = max(tensor.shape[0] for tensor in tensors if tensor.kind == "linear")
    hidden_size = next(t.shape[1] for t in tensors if t.kind == "embedding")
    num_heads = max(1, hidden_size // 64)  # 64 wide in most published models
    rows = lengths.batch * lengths.pass_tokens
    if capability is None:
        # Scores of all heads twice, and the widest layer's input and output with a copy.
        scores_bytes = 2 * 4 * rows * lengths.pass_tokens * num_heads
        layers_bytes = 4 * dtype.itemsize * rows * (hidden_size + widest)
        workspace_bytes = scores_bytes + layers_bytes + _CPU_FLOOR_BYTES
    else:
        # The bias of a pass and what it is made from; scores never leave the chip. The gated
        # layer's two products and their result; hidden state, norm, queries, keys and values.
        bias_bytes = 2 * dtype.itemsize * lengths.pass_tokens**2 * num_heads
        layers_bytes = dtype.itemsize * rows * (8 * hidden_size + 3 * widest)
        panel_bytes = most_panel_bytes(capability)
        workspace_bytes = bias_bytes + layers_bytes + panel_bytes + _GPU_FLOOR_BYTES
    cache_bytes = architecture.cache_bytes(
        lengths.batch, lengths.decoder_tokens, lengths.encoder_tokens, dtype
    )
    return Demand(cache_bytes, workspace_bytes)
