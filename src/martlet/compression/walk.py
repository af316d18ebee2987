"""Whole samples through a model, one block at a time: what compression looks at and trains by.

Between two blocks only hidden states exist. A block is needed once for all samples, so a model that
fits no memory is walked through with one of its blocks in it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from martlet.layers.decoder_cache import DecoderCache, SteppingCache
from martlet.models.architecture import Architecture, Stack, Weights

__all__ = ["Sample", "Walk", "WalkBatch", "WholePass", "batches_of"]

# What a pass of blocks shares (masks, biases) is kept for so many shapes of batches.
_STEPS_KEPT = 4


@dataclass(frozen=True)
class Sample:
    """Tokens that the decoder reads at once, and what the encoder reads where there is one."""

    decoder_ids: tuple[int, ...]
    encoder_ids: tuple[int, ...] = ()

    def ids(self, stack: Stack) -> tuple[int, ...]:
        """The tokens of one stack."""
        return self.encoder_ids if stack == "encoder" else self.decoder_ids


class WholePass:
    """What models need of a cache for one whole pass of right-padded rows: it remembers nothing.

    Keys and values are handed back as they come, and those of the encoder's output are made by
    every block anew, so that gradients flow through all of them.

    Shapes:
        encoder_output: (batch, num_encoder_tokens, hidden_size), or None
    """

    def __init__(
        self,
        num_rows: int,
        encoder_output: Tensor | None = None,
        encoder_lengths: Sequence[int] = (),
    ) -> None:
        assert encoder_output is None or len(encoder_lengths) == num_rows
        self._num_rows = num_rows
        self._encoder_output = encoder_output
        self._encoder_lengths = tuple(encoder_lengths) or (0,) * num_rows
        # Of the block that is running: a short pass on a processor reads them row by row.
        self._own: tuple[Tensor, Tensor] | None = None
        self._encoded: tuple[Tensor, Tensor] | None = None

    @property
    def max_tokens(self) -> int:
        """Nothing is kept: texts are as long as the pass."""
        return 0

    @property
    def lengths(self) -> tuple[int, ...]:
        """Nothing stands before a whole pass."""
        return (0,) * self._num_rows

    @property
    def encoder_lengths(self) -> tuple[int, ...]:
        """Encoder tokens that each row may look at."""
        return self._encoder_lengths

    @property
    def num_encoder_tokens(self) -> int:
        """Width of the encoder's output, padding included."""
        return 0 if self._encoder_output is None else self._encoder_output.shape[1]

    @property
    def stepping(self) -> SteppingCache | None:
        """None: a whole pass is no step."""
        return None

    def longest_after(self, counts: Sequence[int]) -> int:
        """Tokens of the longest row."""
        return max(counts)

    def append(
        self, layer: int, keys: Tensor, values: Tensor, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The same keys and values, (batch, num_kv_heads, tokens of the longest row, head_dim)."""
        longest = max(counts)
        return keys[:, :, :longest], values[:, :, :longest]

    def write(self, layer: int, keys: Tensor, values: Tensor, counts: Sequence[int]) -> None:
        """Hold them while this block runs, see ``row``."""
        self._own = keys, values

    def row(self, layer: int, row: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The first keys and values of one row, (1, num_kv_heads, num_tokens, head_dim) each."""
        assert self._own is not None
        keys, values = self._own
        return keys[row : row + 1, :, :num_tokens], values[row : row + 1, :, :num_tokens]

    def advance(self, counts: Sequence[int]) -> None:
        """The pass has ended: nothing is kept."""
        self._own = self._encoded = None

    def encoder_keys_values(
        self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Keys and values of the encoder's output, made now."""
        assert self._encoder_output is not None, "the encoder has to run first"
        return project(self._encoder_output)

    def hold_encoder_output(
        self, layer: int, project: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        """Make them and hold them while this block runs, see ``encoder_row``."""
        self._encoded = self.encoder_keys_values(layer, project)

    def encoder_row(self, layer: int, row: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The first of them, of one row, (1, num_kv_heads, num_tokens, head_dim) each."""
        assert self._encoded is not None
        keys, values = self._encoded
        return keys[row : row + 1, :, :num_tokens], values[row : row + 1, :, :num_tokens]


@dataclass(eq=False)
class WalkBatch:
    """Samples that go through the blocks together, padded at the right to the longest.

    Shapes:
        hidden: (batch, num_tokens, hidden_size), what the next block reads
        encoder_output: (batch, num_encoder_tokens, hidden_size), once the encoder has been left
    """

    samples: tuple[Sample, ...]
    hidden: Tensor | None = None
    encoder_output: Tensor | None = None
    _ids: dict[Stack, Tensor] = field(default_factory=dict)

    def counts(self, stack: Stack) -> list[int]:
        """Real tokens of each row."""
        return [len(sample.ids(stack)) for sample in self.samples]

    def token_ids(self, stack: Stack) -> Tensor:
        """The tokens, padded with 0: (batch, num_tokens) int64 on the host."""
        if stack not in self._ids:
            width = max(self.counts(stack))
            rows = [list(sample.ids(stack)) for sample in self.samples]
            self._ids[stack] = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        return self._ids[stack]

    def is_real(self, stack: Stack) -> Tensor:
        """Which tokens are no padding, (batch, num_tokens) bool on the host."""
        counts = torch.tensor(self.counts(stack))
        return torch.arange(int(counts.max())) < counts[:, None]


def batches_of(samples: Sequence[Sample], batch_size: int) -> list[WalkBatch]:
    """Neighbouring samples together, ``batch_size`` at a time."""
    assert batch_size > 0
    starts = range(0, len(samples), batch_size)
    return [WalkBatch(tuple(samples[start : start + batch_size])) for start in starts]


class Walk:
    """Hidden states of samples on their way through a model, one block at a time.

    Blocks compute on ``device`` in ``dtype``; hidden states wait on ``kept_on``, in main memory by
    default, so that the number of samples costs no memory of a GPU. Weights come from the caller:
    the fixed ones must stay valid from ``enter`` to ``leave``, those of a block for one ``run``.

    An encoder is walked through first: ``enter``, every block, ``leave``; then the decoder.
    """

    def __init__(
        self,
        architecture: Architecture,
        samples: Sequence[Sample],
        device: torch.device,
        dtype: torch.dtype,
        batch_size: int,
        *,
        kept_on: torch.device | None = None,
    ) -> None:
        assert samples
        self.architecture = architecture
        self.device = device
        self.dtype = dtype
        self.batches = batches_of(samples, batch_size)
        self._kept_on = kept_on or torch.device("cpu")
        self._fixed: Weights | None = None
        self._steps: OrderedDict[tuple[Stack, tuple[int, ...], tuple[int, ...]], Any] = (
            OrderedDict()
        )

    @torch.no_grad()
    def enter(self, fixed: Weights, stack: Stack) -> None:
        """Embed the samples; a decoder with an encoder finds the encoder's output in the batches.

        ``fixed`` lies on the device; its final norm has the dtype of the computation.
        """
        self.hold(fixed)
        for batch in self.batches:
            hidden, _ = self.embed(batch, stack)
            assert hidden.dtype == self.dtype, "the final norm tells the dtype of a pass"
            batch.hidden = hidden.to(self._kept_on)

    def hold(self, fixed: Weights) -> None:
        """What ``context`` needs, without embedding anything: for the way back through a stack."""
        self._fixed = fixed
        self._steps.clear()

    def inputs(self) -> list[Tensor]:
        """What the next block reads, one a batch, (batch, num_tokens, hidden_size), where kept."""
        return [_there(batch.hidden) for batch in self.batches]

    def context(self, batch: WalkBatch, stack: Stack) -> tuple[Any, DecoderCache | None]:
        """What ``Architecture.block`` takes beside weights and hidden state, on the device."""
        key = (stack, tuple(batch.counts(stack)), tuple(batch.counts("encoder")))
        if key not in self._steps:
            with torch.no_grad():
                self._steps[key] = self.embed(batch, stack)[1]
            if len(self._steps) > _STEPS_KEPT:
                self._steps.popitem(last=False)
        self._steps.move_to_end(key)
        return self._steps[key], self._cache(batch, stack)

    @torch.no_grad()
    def run(
        self,
        stack: Stack,
        index: int,
        weights: Weights,
        *,
        keep: bool = True,
        observe: Callable[[WalkBatch], None] | None = None,
    ) -> list[Tensor]:
        """The outputs of a block, one a batch, (batch, num_tokens, hidden_size), where kept.

        ``keep`` makes them what the next block reads. ``weights`` lie on the device. ``observe`` is
        told each batch before it goes through: who looks at the inputs of weights learns from it
        which rows are padding.
        """
        outputs = []
        for batch in self.batches:
            if observe is not None:
                observe(batch)
            step, cache = self.context(batch, stack)
            hidden = _there(batch.hidden).to(self.device)
            out = self.architecture.block(stack, index, weights, hidden, step, cache)
            outputs.append(out.to(self._kept_on))
            if keep:
                batch.hidden = outputs[-1]
        return outputs

    @torch.no_grad()
    def leave(self, fixed: Weights, stack: Stack) -> None:
        """The end of a stack; the encoder's final hidden state becomes what the decoder reads."""
        if stack == "encoder":
            for batch in self.batches:
                hidden = _there(batch.hidden).to(self.device)
                output = self.architecture.head(fixed, stack, hidden)
                batch.encoder_output, batch.hidden = output.to(self._kept_on), None
        self._fixed = None
        self._steps.clear()

    def embed(self, batch: WalkBatch, stack: Stack) -> tuple[Tensor, Any]:
        """What ``Architecture.embed`` gives for a batch, on the device."""
        assert self._fixed is not None, "enter comes first"
        token_ids = batch.token_ids(stack).to(self.device)
        lengths = torch.tensor(batch.counts(stack))
        cache = self._cache(batch, stack)
        return self.architecture.embed(self._fixed, stack, token_ids, cache, lengths)

    def _cache(self, batch: WalkBatch, stack: Stack) -> WholePass | None:
        if stack == "encoder":
            return None
        num_rows = len(batch.samples)
        if not self.architecture.has_encoder:
            return WholePass(num_rows)
        output = _there(batch.encoder_output).to(self.device)
        return WholePass(num_rows, output, batch.counts("encoder"))


def _there(hidden: Tensor | None) -> Tensor:
    assert hidden is not None, "the stack before has to be left first"
    return hidden
