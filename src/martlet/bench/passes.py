"""A generation pass by pass, for timing: every row of a batch does the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from martlet.device.threads import cpu_threads
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture, Stack

__all__ = ["PassTimes", "Workload", "time_passes"]

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Workload:
    """``batch`` texts of ``prompt_tokens`` are read, and ``output_tokens`` follow each.

    An encoder reads the prompt where there is one, and the decoder then begins with one token. The
    first token of the output comes with the prompt, so decode steps are one less than tokens.
    """

    prompt_tokens: int
    output_tokens: int
    repetitions: int = 3
    batch: int = 1

    @property
    def decode_steps(self) -> int:
        """Passes of the decoder after the first one."""
        return self.output_tokens - 1

    def decoder_tokens(self, has_encoder: bool) -> int:
        """Tokens that the cache of the decoder holds at the end."""
        return self.decode_steps + (1 if has_encoder else self.prompt_tokens)


@dataclass(frozen=True)
class PassTimes:
    """Seconds of one generation; ``encode`` is 0 without an encoder, ``step`` is of one step."""

    encode: float
    prefill: float
    step: float


def time_passes(
    architecture: Architecture, executor: Executor, workload: Workload, decode_steps: int
) -> PassTimes:
    """Run one generation, greedy and past any end of the text, of ``decode_steps`` steps.

    Raises:
        CapacityError: cache or activations do not fit into memory.
    """
    with (
        report_out_of_memory("measuring", "use a smaller --batch or fewer tokens"),
        torch.inference_mode(),
    ):
        passes = _Passes(architecture, executor, workload)
        prompt = _spread_ids(architecture, executor, workload)
        encode_seconds = 0.0
        if architecture.has_encoder:
            encode_seconds, _ = passes.timed(lambda: passes.encode(prompt))
            prompt = prompt[:, :1]
        prefill_seconds, next_ids = passes.timed(lambda: passes.read(prompt))
        decode_seconds, _ = passes.timed(lambda: passes.decode(next_ids, decode_steps))
    return PassTimes(encode_seconds, prefill_seconds, decode_seconds / decode_steps)


class _Passes:
    def __init__(self, architecture: Architecture, executor: Executor, workload: Workload) -> None:
        self._architecture = architecture
        self._executor = executor
        has_encoder = architecture.has_encoder
        self._cache = architecture.new_cache(
            workload.batch,
            workload.decoder_tokens(has_encoder),
            torch.empty(0, dtype=executor.dtype, device=executor.device),
            workload.prompt_tokens if has_encoder else 0,
        )

    def timed(self, work: Callable[[], _Result]) -> tuple[float, _Result]:
        """The seconds until a piece of work is done on the device too, and its result."""
        self._wait()
        start = time.perf_counter()
        result = work()
        self._wait()
        return time.perf_counter() - start, result

    def encode(self, token_ids: Tensor) -> None:
        """Run the encoder; token_ids (batch, num_tokens)."""
        hidden = self._run_stack("encoder", token_ids)
        hidden = self._architecture.head(self._executor.fixed(), "encoder", hidden)
        lengths = torch.full(token_ids.shape[:1], token_ids.shape[1], device=hidden.device)
        self._cache.set_encoder_output(hidden, lengths)

    def read(self, token_ids: Tensor) -> Tensor:
        """One pass of the decoder: (batch, num_tokens) -> the likeliest next ids (batch, 1)."""
        hidden = self._run_stack("decoder", token_ids)[:, -1:]
        logits = self._architecture.head(self._executor.fixed(), "decoder", hidden)
        return logits.argmax(dim=-1)

    def decode(self, token_ids: Tensor, num_steps: int) -> Tensor:
        """So many passes, each over what the one before chose."""
        with cpu_threads(self._executor.plan.decode_threads):
            for _ in range(num_steps):
                token_ids = self.read(token_ids)
        return token_ids

    def _run_stack(self, stack: Stack, token_ids: Tensor) -> Tensor:
        cache = self._cache if stack == "decoder" else None
        executor = self._executor
        hidden, step = self._architecture.embed(executor.fixed(), stack, token_ids, cache)
        for index, weights in executor.blocks(stack):
            hidden = self._architecture.block(stack, index, weights, hidden, step, cache)
        return hidden

    def _wait(self) -> None:
        if self._executor.device.type == "cuda":
            torch.cuda.synchronize(self._executor.device)


def _spread_ids(architecture: Architecture, executor: Executor, workload: Workload) -> Tensor:
    """Tokens from all over the vocabulary, other ones in each row: (batch, prompt_tokens)."""
    size = workload.batch * workload.prompt_tokens
    ids = torch.arange(1, size + 1) * 7919 % architecture.vocab_size
    return ids.view(workload.batch, workload.prompt_tokens).to(executor.device)
