"""What generation needs beside the weights, before a plan is made."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from martlet.engine.batch_limits import BatchLimits
from martlet.kernels.cuda.gemm_route import most_panel_bytes
from martlet.memory.plan import Demand
from martlet.models.architecture import FIXED, Architecture, hidden_size_of
from martlet.quantization.kv_form import KVForm

__all__ = ["Lengths", "estimate_batch_demand", "estimate_demand"]

_CPU_FLOOR_BYTES = 64 << 20  # tiles of int8 weights, logits of a chunk, torch's own
_SCORED_TOKENS = 128  # whose logits exist at once
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


@dataclass(frozen=True)
class _LargestPass:
    """What decides the activations: tokens read, and pairs of a query and a key in one head.

    ``bias_pairs`` are those that the bias of a pass is made for; rows that begin at the same
    position share theirs.
    """

    tokens: int
    pairs: int
    bias_pairs: int


def estimate_demand(
    architecture: Architecture,
    lengths: Lengths,
    dtype: torch.dtype,
    capability: tuple[int, int] | None,
    kv_cache: KVForm = "none",
) -> Demand:
    """Cache and an upper estimate of the activations; ``capability`` None is the CPU."""
    tokens = lengths.batch * lengths.pass_tokens
    largest = _LargestPass(tokens, tokens * lengths.pass_tokens, lengths.pass_tokens**2)
    cache_bytes = architecture.cache_bytes(
        lengths.batch, lengths.decoder_tokens, lengths.encoder_tokens, dtype, kv_cache
    )
    workspace_bytes = _workspace_bytes(architecture, largest, dtype, capability)
    if kv_cache != "none":
        tokens = lengths.batch * max(lengths.decoder_tokens, lengths.encoder_tokens)
        workspace_bytes += _dequantized_bytes(architecture, tokens, dtype, capability)
    return Demand(
        cache_bytes,
        workspace_bytes,
        num_texts=lengths.batch,
        text_tokens=lengths.decoder_tokens,
        kv_cache=kv_cache,
    )


def estimate_batch_demand(
    architecture: Architecture,
    limits: BatchLimits,
    dtype: torch.dtype,
    capability: tuple[int, int] | None,
    kv_cache: KVForm = "none",
) -> Demand:
    """The same for a batch: the cache of all its slots, and the largest of the passes it makes.

    A pass reads at most ``limits.chunk_tokens`` in all rows, or the longest input of an encoder; a
    decode step one token a slot, with the logits of each.
    """
    encoder_tokens = limits.encoder_tokens or 0
    decoder_rows = max(limits.chunk_tokens, limits.num_slots)
    keys = max(limits.slot_tokens, encoder_tokens)
    tokens = max(decoder_rows, encoder_tokens)
    # Rows of a batch stand at different positions, so each has a bias of its own.
    pairs = max(decoder_rows * keys, encoder_tokens**2)
    largest = _LargestPass(tokens, pairs, pairs)
    # What the model says, and a copy with penalties and temperature.
    logits_bytes = 2 * 4 * limits.num_slots * architecture.vocab_size
    workspace_bytes = _workspace_bytes(architecture, largest, dtype, capability) + logits_bytes
    if kv_cache != "none":
        # A processor reads prompts one by one.
        rows = 1 if capability is None else limits.num_slots
        workspace_bytes += _dequantized_bytes(architecture, rows * keys, dtype, capability)
    cache_bytes = architecture.cache_bytes(
        limits.num_slots, limits.slot_tokens, encoder_tokens, dtype, kv_cache
    )
    return Demand(
        cache_bytes,
        workspace_bytes,
        num_texts=limits.num_slots,
        text_tokens=limits.slot_tokens,
        kv_cache=kv_cache,
    )


def _dequantized_bytes(
    architecture: Architecture,
    tokens: int,
    dtype: torch.dtype,
    capability: tuple[int, int] | None,
) -> int:
    """What a pass makes of the int8 keys and values that it reads, a layer at a time."""
    layer_bytes = architecture.cache_bytes(1, tokens, 0, dtype) // architecture.num_blocks(
        "decoder"
    )
    # A processor has its integers as floats for a moment, of keys or of values.
    return layer_bytes if capability is not None else layer_bytes * 3 // 2


def _workspace_bytes(
    architecture: Architecture,
    largest: _LargestPass,
    dtype: torch.dtype,
    capability: tuple[int, int] | None,
) -> int:
    tensors = [
        tensor
        for spec in architecture.block_specs()
        if spec.name != FIXED
        for tensor in spec.tensors
    ]
    widest = max(tensor.shape[0] for tensor in tensors if tensor.kind == "linear")
    hidden_size = hidden_size_of(architecture)
    # The output matrix reads the last token of a text, or some of one whose tokens are scored; and
    # a copy.
    logits_bytes = 2 * 4 * min(largest.tokens, _SCORED_TOKENS) * architecture.vocab_size
    # The bias of a pass and what it is made from. Scores exist a few at a time.
    if capability is None:
        bias_bytes = 2 * 4 * largest.pairs * architecture.mask_heads
        # The widest layer's input and output with a copy.
        layers_bytes = 4 * dtype.itemsize * largest.tokens * (hidden_size + widest)
        return bias_bytes + layers_bytes + logits_bytes + _CPU_FLOOR_BYTES
    bias_bytes = 2 * dtype.itemsize * largest.bias_pairs * architecture.mask_heads
    # The gated layer's two products and their result; hidden state, norm, queries, keys and values.
    layers_bytes = dtype.itemsize * largest.tokens * (8 * hidden_size + 3 * widest)
    panel_bytes = most_panel_bytes(capability)
    return bias_bytes + layers_bytes + logits_bytes + panel_bytes + _GPU_FLOOR_BYTES
