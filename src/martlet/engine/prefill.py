"""Reading the beginnings of texts: several at a time, and long ones in chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from martlet.device.threads import cpu_threads
from martlet.engine.batch_text import BatchText
from martlet.engine.passes import pass_threads, run_stack
from martlet.engine.sequence_memory import NEXT_STEP
from martlet.errors import CapacityError
from martlet.layers.cache_rows import CacheRows
from martlet.layers.kv_cache import KVCache
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import Executor
from martlet.memory.plan import Phase
from martlet.models.architecture import Architecture

__all__ = ["Prefill", "PrefillResult"]

# Chunks are not made smaller than this when memory runs out: a pass over so little takes hardly
# more than a decode step.
_SMALLEST_CHUNK_TOKENS = 16


@dataclass
class PrefillResult:
    """What a pass has done.

    ready: texts that have been read to their end, each with the logits of what follows,
        (vocab_size,) float32.
    failed: texts that there was no memory for, and why.
    num_out_of_memory: how often memory ran out on the way.
    streamed_bytes: bytes of weights that were copied for the pass.
    """

    ready: list[tuple[BatchText, Tensor]] = field(default_factory=list)
    failed: list[tuple[BatchText, CapacityError]] = field(default_factory=list)
    num_out_of_memory: int = 0
    streamed_bytes: int = 0


class Prefill:
    """Texts whose decoder has tokens to read before it can go on one by one.

    A run reads ``chunk_tokens`` at most, of the texts that have waited longest. A text that is
    longer is read in chunks, and the others come in between. Only an encoder reads a text at once,
    however long.

    On a GPU a run is one pass over several texts, padded to the longest, for which weights are read
    or copied once. On a CPU each text has a pass of its own, just as if it were alone: a prompt is
    bound by arithmetic there, and results do not depend on what is read beside it.
    """

    def __init__(
        self, architecture: Architecture, executor: Executor, cache: KVCache, chunk_tokens: int
    ) -> None:
        self._architecture = architecture
        self._executor = executor
        self._cache = cache
        self._most_tokens = self._chunk_tokens = chunk_tokens
        self._reads_together = executor.device.type != "cpu"
        self._texts: list[BatchText] = []

    def push(self, text: BatchText) -> None:
        """Read this text as well; its slot holds nothing."""
        self._texts.append(text)

    def remove(self, text: BatchText) -> None:
        """Forget a text."""
        self._texts.remove(text)

    @property
    def has_texts(self) -> bool:
        """Whether there is anything to read."""
        return bool(self._texts)

    def __contains__(self, text: object) -> bool:
        return text in self._texts

    def run(self) -> PrefillResult:
        """Read on, if there is anything to read.

        Where memory runs out, the same is tried in smaller pieces; what does not fit even then has
        failed. Later passes are small too, growing again with every one that succeeds.
        """
        result = PrefillResult()
        num_read = 0
        while self._texts:
            texts = self._next_texts()
            num_tokens = sum(map(self._next_tokens, texts))
            if num_read and (self._reads_together or num_read + num_tokens > self._most_tokens):
                break
            try:
                result.ready += self._read(texts, result)
            except CapacityError as error:
                result.num_out_of_memory += 1
                for text in texts:
                    self._cache.truncate(text.slot, text.held_tokens)
                if self._is_divisible(texts) and self._halve_chunks():
                    continue
                result.failed = [(text, error) for text in texts]
                self._texts = [text for text in self._texts if text not in texts]
                break
            num_read += num_tokens
            self._chunk_tokens = min(self._most_tokens, 2 * self._chunk_tokens)
            waiting = [text for text in self._texts if text not in texts]
            self._texts = [*waiting, *(text for text in texts if text.writing.unread)]
        return result

    def _next_tokens(self, text: BatchText) -> int:
        """Tokens of a text in the first part of its next pass, which is the longer one."""
        if text.encoder_ids is not None:
            return len(text.encoder_ids)
        return min(len(text.writing.unread), self._chunk_tokens)

    def _is_divisible(self, texts: Sequence[BatchText]) -> bool:
        return len(texts) > 1 or texts[0].encoder_ids is None

    def _halve_chunks(self) -> bool:
        smaller = max(_SMALLEST_CHUNK_TOKENS, self._chunk_tokens // 2)
        is_smaller = smaller < self._chunk_tokens
        self._chunk_tokens = min(smaller, self._chunk_tokens)
        return is_smaller

    def _next_texts(self) -> list[BatchText]:
        """The rows of the next pass: all with an encoder to run before, or all without."""
        if not self._reads_together:
            return self._texts[:1]
        has_encoder = self._texts[0].encoder_ids is not None
        texts: list[BatchText] = []
        longest = 0
        for text in self._texts:
            if (text.encoder_ids is not None) != has_encoder:
                continue
            width = max(longest, self._next_tokens(text))
            if not texts or width * (len(texts) + 1) <= self._chunk_tokens:
                texts.append(text)
                longest = width
        return texts

    def _read(
        self, texts: Sequence[BatchText], result: PrefillResult
    ) -> list[tuple[BatchText, Tensor]]:
        rows = self._cache.rows([text.slot for text in texts])
        most_tokens = max(1, self._chunk_tokens // len(texts))
        counts = [min(len(text.writing.unread), most_tokens) for text in texts]
        with torch.inference_mode():
            if texts[0].encoder_ids is not None:
                self._encode(texts, rows, result)
            chunks = [text.writing.unread[:n] for text, n in zip(texts, counts, strict=True)]
            is_first = any(text.held_tokens == 0 for text in texts)
            hidden = self._pass("prefill" if is_first else "decode", chunks, rows, result)
            is_last = [n == len(text.writing.unread) for text, n in zip(texts, counts, strict=True)]
            logits = self._logits(hidden, counts, is_last)
        for text, count in zip(texts, counts, strict=True):
            text.note_read(count)
        ready = [text for text, last in zip(texts, is_last, strict=True) if last]
        return list(zip(ready, logits, strict=True))

    def _encode(self, texts: Sequence[BatchText], rows: CacheRows, result: PrefillResult) -> None:
        token_ids = [list(text.encoder_ids or ()) for text in texts]
        hidden = self._pass("encode", token_ids, None, result)
        with report_out_of_memory("encoding", NEXT_STEP):
            hidden = self._architecture.head(self._executor.fixed(), "encoder", hidden)
        rows.set_encoder_output(hidden, [len(ids) for ids in token_ids])

    def _pass(
        self,
        phase: Phase,
        token_ids: Sequence[Sequence[int]],
        cache: CacheRows | None,
        result: PrefillResult,
    ) -> Tensor:
        """The hidden state of a padded pass, (number of texts, longest, hidden_size)."""
        device = self._executor.device
        lengths = [len(ids) for ids in token_ids]
        width = max(lengths)
        padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in token_ids])
        result.streamed_bytes += self._executor.plan.streamed_bytes(phase)
        with (
            report_out_of_memory(f"reading {sum(lengths):,} tokens", NEXT_STEP),
            cpu_threads(pass_threads(self._executor, padded.numel())),
        ):
            return run_stack(
                self._architecture,
                self._executor,
                phase,
                padded.to(device),
                cache,
                None if len(set(lengths)) == 1 else torch.tensor(lengths),
            )

    def _logits(
        self, hidden: Tensor, counts: Sequence[int], is_last: Sequence[bool]
    ) -> Sequence[Tensor]:
        """What follows the last token of the rows that end here, (vocab_size,) float32 each."""
        chosen = [row for row, last in enumerate(is_last) if last]
        if not chosen:
            return ()
        with (
            report_out_of_memory("reading the end of a prompt", NEXT_STEP),
            cpu_threads(pass_threads(self._executor, len(chosen))),
        ):
            ends = hidden[chosen, [counts[row] - 1 for row in chosen]]
            fixed = self._executor.fixed()
            return self._architecture.head(fixed, "decoder", ends[:, None])[:, 0].unbind()
