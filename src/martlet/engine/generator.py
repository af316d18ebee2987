"""Prefill, decode steps, and when to stop: the only place that joins a model and its weights."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from martlet.engine.device_steps import DeviceSteps
from martlet.engine.request import Context, Finished, Request, Suppress, TokenEvent
from martlet.engine.sampler import Sample
from martlet.engine.sequence import RunningSequence
from martlet.engine.sequence_memory import SequenceMemory
from martlet.engine.writing import Writing
from martlet.errors import ContextLengthError
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["Generator"]

# Steps that are launched before the token before them has been looked at: enough to keep a fast
# card busy, and where weights are streamed a single one, for the link must not wait but every step
# past the end of a text is long.
_STEPS_AHEAD = 4
_STREAMED_STEPS_AHEAD = 1


class Generator:
    """Runs requests on one model. The same request with the same seed gives the same tokens.

    ``uses_steps`` tells whether single tokens are decode steps on the device, as on a GPU. Then
    the memory of one sequence, with its captured steps, is kept for the next.
    """

    def __init__(
        self, architecture: Architecture, executor: Executor, tokenizer: Tokenizer
    ) -> None:
        self.architecture = architecture
        self.executor = executor
        self.tokenizer = tokenizer
        self.uses_steps = executor.device.type == "cuda"
        self._lock = threading.Lock()
        self._kept: SequenceMemory | None = None

    def generate(self, request: Request) -> Iterator[TokenEvent | Finished]:
        """The tokens of a request as they come, then one ``Finished``.

        The pieces of text, put together, are the text up to the first stop string. The token that
        ends the text (see ``Request.eos_ids``) is no event. Nothing is computed before the first
        event is asked for; closing the iterator between two events ends the work.

        Raises:
            ContextLengthError: the prompt has more tokens than the model has positions.
            CapacityError: cache or activations do not fit into memory.
        """
        return _Run(self, request).events()

    def start(
        self, context: Context, room_tokens: int, limit_tokens: int | None
    ) -> RunningSequence:
        """A sequence with room for a context and ``room_tokens`` more, its encoder already run.

        ``limit_tokens`` bounds the room (None: only the model's positions do).

        Raises:
            ContextLengthError: the context alone has more tokens than the model has positions.
            CapacityError: the cache does not fit into memory.
        """
        num_tokens = len(context.decoder_ids)
        limits = [n for n in (limit_tokens, self.architecture.max_positions) if n is not None]
        if limits and num_tokens > min(limits):
            raise ContextLengthError(
                f"the text has {num_tokens:,} tokens and the model reads at most {min(limits):,}; "
                "use a shorter text"
            )
        capacity_tokens = min([num_tokens + room_tokens, *limits])
        encoder_tokens = len(context.encoder_ids or ())
        sequence = RunningSequence(
            self.architecture,
            self.executor,
            capacity_tokens,
            encoder_tokens,
            self._memory(capacity_tokens, encoder_tokens) if self.uses_steps else None,
            self.uses_steps,
        )
        if context.encoder_ids is not None:
            sequence.encode(context.encoder_ids)
        return sequence

    def finish(self, sequence: RunningSequence) -> None:
        """Keep the memory of a sequence, which must not be used any more, for the next one."""
        sequence.end_steps()
        if self.uses_steps:
            with self._lock:
                self._kept = sequence.memory

    def _memory(self, capacity_tokens: int, encoder_tokens: int) -> SequenceMemory:
        """What was kept, if it suits; else new memory, for which the other is freed."""
        with self._lock:
            memory, self._kept = self._kept, None
        if memory is not None and memory.suits(capacity_tokens, encoder_tokens):
            memory.cache.reset()
            return memory
        del memory
        return SequenceMemory(
            self.architecture, self.executor, capacity_tokens, encoder_tokens, is_lasting=True
        )


class _Run:
    """One request on a sequence of its own."""

    def __init__(self, generator: Generator, request: Request) -> None:
        self._generator = generator
        self._request = request
        self._writing = Writing(request, generator.tokenizer, generator.architecture.vocab_size)
        self._sequence: RunningSequence | None = None
        self._steps: DeviceSteps | None = None

    def events(self) -> Iterator[TokenEvent | Finished]:
        """See ``Generator.generate``."""
        writing = self._writing
        try:
            while writing.reason is None:
                start = time.perf_counter()
                event = self._step()
                writing.add_seconds(time.perf_counter() - start)
                if event is not None:
                    yield event
        finally:
            self._finish_sequence()
        yield writing.finished()

    def _step(self) -> TokenEvent | None:
        """One more token, or None and a reason why there is none."""
        if self._request.cancel.is_set():
            self._writing.reason = "cancelled"
            return None
        forced = self._request.constraint.forced()
        if forced is not None:
            return self._writing.accept(forced, None)
        sample = self._next_token()
        if sample is None:
            self._writing.reason = "length"
            return None
        return self._writing.accept(sample.token_id, sample)

    def _next_token(self) -> Sample | None:
        """The token that the model chooses; None where the context is full."""
        sequence = self._sequence_with_room()
        if sequence is None:
            return None
        writing, constraint = self._writing, self._request.constraint
        unread, writing.unread = writing.unread, []
        if self._steps is not None and sequence.num_tokens and len(unread) == 1:
            return self._steps.next(unread[0], constraint.suppressed(), writing.left_tokens)
        logits = sequence.advance(unread)
        return writing.sampler.sample(logits[-1], constraint.suppressed())

    def _sequence_with_room(self) -> RunningSequence | None:
        """The sequence that can read what is unread; a new one where the window moves on."""
        request, writing = self._request, self._writing
        context: Context | None = request.context
        if self._sequence is not None:
            if len(writing.unread) <= self._sequence.free_tokens:
                return self._sequence
            context = writing.restart()
        if context is None:
            return None
        limit_tokens = None if request.window is None else request.window.limit_tokens
        self._finish_sequence()  # the full cache goes before the next one is made
        sequence = self._generator.start(context, writing.left_tokens, limit_tokens)
        self._sequence = sequence
        # Steps on the device tell the log-probability of the token that they choose alone.
        if self._generator.uses_steps and not request.top_logprobs:
            self._steps = DeviceSteps(sequence, writing.sampler, request.eos_ids, self._num_ahead())
        writing.unread[:0] = context.decoder_ids
        return sequence

    def _num_ahead(self) -> int:
        # A constraint that looks at the tokens before it decides must see each of them in time.
        if not isinstance(self._request.constraint, Suppress):
            return 0
        streamed_bytes = self._generator.executor.plan.streamed_bytes("decode")
        return _STREAMED_STEPS_AHEAD if streamed_bytes else _STEPS_AHEAD

    def _finish_sequence(self) -> None:
        sequence, self._sequence, self._steps = self._sequence, None, None
        if sequence is not None:
            self._generator.finish(sequence)
