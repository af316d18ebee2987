"""A generation pass by pass, for timing: every row of a batch does the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from martlet.device.threads import cpu_threads
from martlet.engine.decode import DecodeLoop
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import Executor
from martlet.memory.plan import Phase
from martlet.models.architecture import Architecture, Stack

__all__ = ["PassTimes", "Passes", "Workload"]

_Result = TypeVar("_Result")
_NEXT_STEP = "use a smaller --batch or fewer tokens"


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


class Passes:
    """Generations of one workload, again and again in the same cache: steps are captured once.

    Raises:
        CapacityError: the cache does not fit into memory.
    """

    def __init__(self, architecture: Architecture, executor: Executor, workload: Workload) -> None:
        self._architecture = architecture
        self._executor = executor
        self._prompt = _spread_ids(architecture, executor, workload)
        has_encoder = architecture.has_encoder
        with report_out_of_memory("making a cache", _NEXT_STEP), torch.inference_mode():
            self._cache = architecture.new_cache(
                workload.batch,
                workload.decoder_tokens(has_encoder),
                torch.empty(0, dtype=executor.dtype, device=executor.device),
                workload.prompt_tokens if has_encoder else 0,
                executor.plan.demand.kv_cache,
            )
            self._loop = DecodeLoop(architecture, executor, self._cache, workload.decode_steps)

    def time(self, decode_steps: int) -> PassTimes:
        """Run one generation, greedy and past any end of the text, of so many steps.

        Raises:
            CapacityError: activations do not fit into memory.
        """
        prompt, encode_seconds = self._prompt, 0.0
        with report_out_of_memory("measuring", _NEXT_STEP), torch.inference_mode():
            if self._architecture.has_encoder:
                encode_seconds, _ = self._timed(lambda: self._encode(prompt))
                prompt = prompt[:, :1]
            prefill_seconds, next_ids = self._timed(lambda: self._read(prompt))
            decode_seconds, _ = self._timed(lambda: self._decode(next_ids, decode_steps))
            self._loop.end()
            self._cache.end_steps([0] * self._cache.num_slots)  # empty for the next one
        return PassTimes(encode_seconds, prefill_seconds, decode_seconds / decode_steps)

    def _timed(self, work: Callable[[], _Result]) -> tuple[float, _Result]:
        """The seconds until a piece of work is done on the device too, and its result."""
        self._wait()
        start = time.perf_counter()
        result = work()
        self._wait()
        return time.perf_counter() - start, result

    def _encode(self, token_ids: Tensor) -> None:
        """Run the encoder; token_ids (batch, num_tokens)."""
        hidden = self._run("encode", token_ids)
        hidden = self._architecture.head(self._executor.fixed(), "encoder", hidden)
        lengths = torch.full(token_ids.shape[:1], token_ids.shape[1], device=hidden.device)
        self._cache.set_encoder_output(hidden, lengths)

    def _read(self, token_ids: Tensor) -> Tensor:
        """One pass of the decoder: (batch, num_tokens) -> the likeliest next ids (batch, 1)."""
        hidden = self._run("prefill", token_ids)[:, -1:]
        logits = self._architecture.head(self._executor.fixed(), "decoder", hidden)
        return logits.argmax(dim=-1)

    def _decode(self, token_ids: Tensor, num_steps: int) -> None:
        """So many steps, each over what the one before chose; (batch, 1) begins."""
        self._loop.begin(token_ids[:, 0].tolist())
        with cpu_threads(self._executor.plan.decode_threads):
            self._loop.launch(num_steps)

    def _run(self, phase: Phase, token_ids: Tensor) -> Tensor:
        stack: Stack = "encoder" if phase == "encode" else "decoder"
        cache = self._cache if stack == "decoder" else None
        executor = self._executor
        hidden, step = self._architecture.embed(executor.fixed(), stack, token_ids, cache)
        for index, weights in executor.blocks(phase):
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
