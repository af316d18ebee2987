"""What every architecture offers, so that loading, planning and generation need to know no model.

A model is ``embed``, a row of blocks, ``head``: each a pure function of weights, hidden state and
cache. The memory side hands out the weights block by block; only the generator joins the two.
An encoder-decoder model has two stacks of blocks, a decoder-only model has one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from martlet.layers.decoder_cache import DecoderCache
from martlet.layers.kv_cache import KVCache
from martlet.quantization.kv_form import KVForm
from martlet.quantization.scheme import Weight

__all__ = [
    "FIXED",
    "Architecture",
    "BlockSpec",
    "CheckpointTensor",
    "LinearInput",
    "Stack",
    "TensorKind",
    "TensorSpec",
    "Weights",
    "hidden_size_of",
    "output_matrix_of",
    "own_head_of",
    "stacks_of",
]

Stack = Literal["encoder", "decoder"]
# linear: (out_features, in_features), may be quantised; embedding: (rows, hidden_size), may be
# quantised, one scale a row; other: norms, biases, position tables, always float.
TensorKind = Literal["linear", "embedding", "other"]
Weights = Mapping[str, Weight]

FIXED = "fixed"
"""Name of the block of weights that belong to no layer: embeddings, final norms, head."""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a block: its name inside the block, its shape and what it is for.

    ``once`` marks a tensor that is read once a text, by the pass that first sees the encoder's
    output, and not by decode steps. Such tensors stand last in the spec of their block, so that
    what a decode step reads is one run of bytes in a file that is written by it.
    """

    name: str
    shape: tuple[int, ...]
    kind: TensorKind
    once: bool = False


@dataclass(frozen=True)
class BlockSpec:
    """The tensors that move together.

    ``name`` is "fixed", "encoder.3" or "decoder.0". A tensor's name in the file is
    ``prefix + tensor.name``; inside the block's ``Weights`` the key is ``tensor.name``.
    """

    name: str
    prefix: str
    tensors: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class LinearInput:
    """An input that some matrices of a block share, by their names inside the block.

    ``consumers`` are the matrices that read it. Where ``producers`` are named, channel c of the
    input is proportional to entry ``first_row + c`` of the first axis of all of them together (a
    norm's weight and bias, rows of a matrix and its bias): what is divided there and multiplied in
    column c of the consumers changes nothing that the model computes.
    ``is_encoder_output`` marks what cross attention reads of the encoder.
    """

    consumers: tuple[str, ...]
    producers: tuple[str, ...] = ()
    first_row: int = 0
    is_encoder_output: bool = False


@dataclass(frozen=True)
class CheckpointTensor:
    """Where one of our tensors lies in a checkpoint of Hugging Face.

    It is in the first of ``names`` that the checkpoint has; turned round first where
    ``transposed``, because the file keeps (in_features, out_features). Of every ``period`` rows
    (None: of all together), ``count`` rows from ``first`` on are ours (None: all to the end), one
    group behind the other: so a checkpoint may keep queries, keys and values in one matrix, as
    three thirds or head by head.
    """

    names: tuple[str, ...]
    period: int | None = None
    first: int = 0
    count: int | None = None
    transposed: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the tensor in the checkpoint."""
        return self.period is None and self.first == 0 and self.count is None


class Architecture(Protocol):
    """One model architecture with its configuration; holds no weights.

    ``max_positions`` is the hard limit of positions (a learned table, or how far the model was
    trained), or None where positions are relative to a clipped distance. ``has_encoder`` tells an
    encoder-decoder model. ``mask_heads`` is for how many heads a pass makes a bias of its own: 1
    where it only hides keys, which is the same for all.
    """

    model_type: str
    vocab_size: int
    max_positions: int | None
    has_encoder: bool
    mask_heads: int

    def block_specs(self) -> tuple[BlockSpec, ...]:
        """All blocks in file order: fixed, encoder.0.., decoder.0.. ."""
        ...

    def checkpoint_tensor(self, name: str) -> CheckpointTensor:
        """Where the tensor with this name in our files lies in a checkpoint of Hugging Face."""
        ...

    def num_blocks(self, stack: Stack) -> int:
        """Number of blocks in a stack; 0 for the encoder of a decoder-only model."""
        ...

    def linear_inputs(self, stack: Stack) -> tuple[LinearInput, ...]:
        """The inputs of all linears of a block of a stack, each linear in one of them."""
        ...

    def head_input(self) -> LinearInput:
        """What the output matrix reads, among the fixed weights."""
        ...

    def new_cache(
        self,
        num_slots: int,
        max_tokens: int,
        like: Tensor,
        max_encoder_tokens: int = 0,
        kv_cache: KVForm = "none",
    ) -> KVCache:
        """An empty static cache for ``num_slots`` sequences of at most ``max_tokens`` tokens.

        ``like`` gives device and dtype of the activations, ``kv_cache`` the form of keys and
        values. ``max_encoder_tokens`` allocates the keys and values of cross attention at once;
        with 0 that happens when the encoder's output comes.
        """
        ...

    def cache_bytes(
        self,
        num_slots: int,
        max_tokens: int,
        max_encoder_tokens: int,
        dtype: torch.dtype,
        kv_cache: KVForm = "none",
    ) -> int:
        """Bytes that such a cache takes when it is full; touches no device."""
        ...

    def embed(
        self,
        fixed: Weights,
        stack: Stack,
        token_ids: Tensor,
        cache: DecoderCache | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Enter a stack: the hidden state, and what all blocks of this pass share (masks, bias).

        Positions continue after what the cache holds of each slot. ``lengths`` tells how many of
        the tokens of each row are real (padding stands at the right, 0 is an idle slot); None
        means all. The hidden state has the dtype of the stack's final norm, whatever the embedding
        is stored in: who casts the float weights decides the dtype of the computation with it.

        Shapes:
            token_ids: (batch, num_tokens) int64
            lengths: (batch,) int64
            return: (batch, num_tokens, hidden_size), and an opaque value to hand to ``block``
        """
        ...

    def block(
        self,
        stack: Stack,
        index: int,
        weights: Weights,
        hidden: Tensor,
        step: Any,
        cache: DecoderCache | None,
    ) -> Tensor:
        """One block: the new hidden state, same shape; keys and values go into the cache.

        The last block of the decoder makes the cache count them, so that the next ``embed``
        continues there; blocks therefore run once each, in order.
        """
        ...

    def head(self, fixed: Weights, stack: Stack, hidden: Tensor) -> Tensor:
        """Leave a stack.

        Encoder: the final norm, (batch, num_tokens, hidden_size), which goes to
        ``CacheRows.set_encoder_output``. Decoder: logits, (batch, num_tokens, vocab_size) float32.
        """
        ...


def stacks_of(architecture: Architecture) -> tuple[Stack, ...]:
    """The stacks of a model in the order in which they run."""
    return ("encoder", "decoder") if architecture.has_encoder else ("decoder",)


def own_head_of(architecture: Architecture) -> str | None:
    """The output matrix among the fixed weights; None where it is the embedding as well."""
    head = output_matrix_of(architecture)
    return head.name if head.kind == "linear" else None


def hidden_size_of(architecture: Architecture) -> int:
    """Width of the hidden states."""
    return output_matrix_of(architecture).shape[1]


def output_matrix_of(architecture: Architecture) -> TensorSpec:
    """What logits are computed with, among the fixed weights: the head, or the embedding."""
    (name,) = architecture.head_input().consumers
    fixed = next(spec for spec in architecture.block_specs() if spec.name == FIXED)
    return next(tensor for tensor in fixed.tensors if tensor.name == name)
