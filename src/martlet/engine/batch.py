"""Continuous batching: texts that join and leave while others are written."""

from __future__ import annotations

import contextlib
import heapq
import threading
from dataclasses import dataclass

import torch

from martlet.engine.batch_limits import BatchLimits
from martlet.engine.batch_steps import choose, make_steps
from martlet.engine.batch_text import BatchText, Deliver, Event, Failed, Started
from martlet.engine.fair_queue import FairQueue
from martlet.engine.generator import Generator
from martlet.engine.prefill import Prefill
from martlet.engine.request import Request, constraint_error
from martlet.engine.sampler import Sample
from martlet.engine.sequence_memory import NEXT_STEP
from martlet.engine.slot_room import SlotRoom
from martlet.engine.writing import Writing
from martlet.errors import CapacityError, MartletError
from martlet.memory.capacity import report_out_of_memory

__all__ = ["Batch", "BatchState", "Deliver", "Event", "Failed", "Started"]


@dataclass(frozen=True)
class BatchState:
    """How a batch is doing. What ends in ``_total`` counts from its beginning.

    cache_tokens, cache_capacity_tokens: tokens that the slots hold and could hold, those of
        encoders included.
    num_steps_total: decode steps, each one token for every text that runs.
    streamed_bytes_total: bytes of weights that were copied to the GPU, for all passes.
    out_of_memory_total: passes that memory ran out in.
    """

    num_running: int
    num_waiting: int
    cache_tokens: int
    cache_capacity_tokens: int
    prompt_tokens_total: int = 0
    output_tokens_total: int = 0
    num_steps_total: int = 0
    streamed_bytes_total: int = 0
    out_of_memory_total: int = 0


@dataclass
class _Totals:
    prompt_tokens: int = 0
    output_tokens: int = 0
    steps: int = 0
    streamed_bytes: int = 0
    out_of_memory: int = 0


@dataclass(frozen=True, eq=False)
class _Waiting:
    request: Request
    deliver: Deliver


class Batch:
    """Writes many texts on one model, a token of each at a time.

    A text that a batch writes is the one that ``Generator.generate`` writes for the same request
    and seed: draws, penalties, masks, stop strings and windows are those of the text alone, and no
    text sees another. The numbers are the same as well, as far as rounding allows:

    * On a CPU with int8 weights to the last bit. Prompts are read one by one and in the same
      chunks, attention is computed row by row, and integer products of up to 16 rows do not depend
      on how many there are; more rows take another pass. Not where memory ran out while a prompt
      was read, nor with other ``chunk_tokens`` and a prompt longer than they are.
    * With float weights, and on a GPU, a product over another number of rows may be summed in
      another order, and differ in the last bits. A token changes where two are equally probable,
      or a draw falls between two, up to that.

    One thread calls ``step``; ``submit`` and ``state`` may be called from any.

    Raises:
        CapacityError: the cache does not fit into memory.
    """

    def __init__(self, generator: Generator, limits: BatchLimits) -> None:
        architecture, executor = generator.architecture, generator.executor
        self.limits = limits
        self._room = SlotRoom(limits, architecture.max_positions)
        self._generator = generator
        like = torch.empty(0, dtype=executor.dtype, device=executor.device)
        with (
            report_out_of_memory(f"making a cache of {limits.num_slots} slots", NEXT_STEP),
            torch.inference_mode(),
        ):
            self._cache = architecture.new_cache(
                limits.num_slots,
                limits.slot_tokens,
                like,
                limits.encoder_tokens or 0,
                executor.plan.demand.kv_cache,
            )
        self._steps = make_steps(architecture, executor, self._cache)
        self._prefill = Prefill(architecture, executor, self._cache, limits.chunk_tokens)
        self._decode_bytes = executor.plan.streamed_bytes("decode")
        self._lock = threading.Lock()
        self._queue: FairQueue[_Waiting] = FairQueue()
        self._free_slots = list(range(limits.num_slots))  # a heap: the lowest comes first
        self._texts: dict[int, BatchText] = {}  # by slot, in the order of their start
        self._totals = _Totals()

    def warm_up(
        self, request: Request | None = None, deliver: Deliver = lambda event: None
    ) -> None:
        """Make decode steps ready now, and write a text that no total counts.

        ``deliver`` hears of it what it would of any other.

        Raises:
            CapacityError: there is no memory for what steps need.
            ContextLengthError: the request is longer than a slot.
        """
        assert not self._texts
        self._steps.warm_up()
        if request is not None:
            self.submit(request, deliver)
            while self.step():
                pass
            self._totals = _Totals()

    def submit(self, request: Request, deliver: Deliver, client: str = "") -> None:
        """Write this text when there is a slot; clients take turns.

        ``deliver`` hears ``Started``, each ``TokenEvent``, and at the end ``Finished`` or
        ``Failed``. Setting ``request.cancel`` ends the text at the next step, waiting or not.

        Raises:
            ContextLengthError: prompt or encoder input is longer than a slot.
        """
        self._room.require(request)
        with self._lock:
            self._queue.push(client, _Waiting(request, deliver))

    def step(self) -> bool:
        """Admit texts, read at most one pass of prompts, and give each running text a token.

        Returns False where nothing is left to do.

        Raises:
            Exception: what is no fault of a text, as an error of the device. The batch is then of
                no more use.
        """
        self._end_cancelled()
        self._admit()
        self._read_prompts()
        self._decode()
        return bool(self._texts) or self._num_waiting() > 0

    def state(self) -> BatchState:
        """How it is doing now."""
        texts, limits, totals = list(self._texts.values()), self.limits, self._totals
        return BatchState(
            num_running=len(texts),
            num_waiting=self._num_waiting(),
            cache_tokens=sum(text.held_tokens + text.held_encoder_tokens for text in texts),
            cache_capacity_tokens=limits.num_slots
            * (limits.slot_tokens + (limits.encoder_tokens or 0)),
            prompt_tokens_total=totals.prompt_tokens,
            output_tokens_total=totals.output_tokens,
            num_steps_total=totals.steps,
            streamed_bytes_total=totals.streamed_bytes,
            out_of_memory_total=totals.out_of_memory,
        )

    def _num_waiting(self) -> int:
        with self._lock:
            return len(self._queue)

    def _end_cancelled(self) -> None:
        with self._lock:
            gone = self._queue.remove(lambda waiting: waiting.request.cancel.is_set())
        for waiting in gone:
            text = self._text(waiting, slot=-1)
            text.writing.reason = "cancelled"
            text.send(text.writing.finished())
        for text in list(self._texts.values()):
            if text.writing.request.cancel.is_set():
                text.writing.reason = "cancelled"
                self._finish(text)

    def _admit(self) -> None:
        while self._free_slots:
            with self._lock:
                waiting = self._queue.pop()
            if waiting is None:
                return
            slot = heapq.heappop(self._free_slots)
            text = self._texts[slot] = self._text(waiting, slot)
            self._totals.prompt_tokens += text.writing.prompt_tokens
            text.send(Started(text.writing.prompt_tokens, text.writing.sampler.seed))
            if self._take_forced(text):
                text.begin(text.writing.request.context)
                if self._has_room(text):
                    self._prefill.push(text)

    def _text(self, waiting: _Waiting, slot: int) -> BatchText:
        architecture, request = self._generator.architecture, waiting.request
        writing = Writing(request, self._generator.tokenizer, architecture.vocab_size)
        return BatchText(slot, writing, waiting.deliver, self._room.limit_tokens(request))

    def _read_prompts(self) -> None:
        if not self._prefill.has_texts:
            return
        self._keep_busy()
        result = self._prefill.run()
        self._keep_busy()  # while the first tokens are chosen
        self._totals.streamed_bytes += result.streamed_bytes
        self._totals.out_of_memory += result.num_out_of_memory
        for text, error in result.failed:
            self._fail(text, error)
        for text, logits in result.ready:
            writing = text.writing
            sample = choose(writing.request, writing.sampler, logits)
            if self._take(text, sample):
                self._steps.add(text.slot, writing.unread[0], writing.request, writing.sampler)
                text.is_stepping = True

    def _keep_busy(self) -> None:
        with contextlib.suppress(CapacityError):  # the next step will meet it again
            self._steps.keep_busy()

    def _decode(self) -> None:
        if not any(text.is_stepping for text in self._texts.values()):
            return
        try:
            chosen = self._steps.run()
        except CapacityError as error:
            self._totals.out_of_memory += 1
            # The newest goes, so that the others have its memory and somebody gets to an end.
            self._fail([text for text in self._texts.values() if text.is_stepping][-1], error)
            return
        self._totals.steps += 1
        self._totals.streamed_bytes += self._decode_bytes
        for slot, sample in chosen.items():
            text = self._texts[slot]
            text.note_read(1)
            if text.writing.unread:
                # What follows is forced: this choice was none, and its draw is for the next one.
                text.writing.sampler.take_back()
                self._steps.feed(slot, text.writing.unread[0])
            else:
                self._take(text, sample)

    def _take(self, text: BatchText, sample: Sample | MartletError) -> bool:
        """Go on with the token that was chosen; False where the text does not go on from there."""
        if isinstance(sample, MartletError):
            self._fail(text, sample)
            return False
        return (
            self._accept(text, sample.token_id, sample)
            and self._take_forced(text)
            and self._has_room(text)
        )

    def _take_forced(self, text: BatchText) -> bool:
        """Accept the tokens that come whatever the model says; False where the text has ended."""
        while True:
            try:
                forced = text.writing.request.constraint.forced()
            except Exception as error:
                self._fail(text, constraint_error(error))
                return False
            if forced is None:
                return True
            if not self._accept(text, forced, None):
                return False

    def _accept(self, text: BatchText, token_id: int, sample: Sample | None) -> bool:
        """One more token; False where the text has ended with it."""
        writing = text.writing
        try:
            event = writing.accept(token_id, sample)
        except Exception as error:  # a constraint is somebody else's code
            self._fail(text, constraint_error(error))
            return False
        writing.add_seconds(text.lap_seconds())
        self._totals.output_tokens += 1
        if event is not None:
            text.send(event)
        if writing.reason is None:
            return True
        self._finish(text)
        return False

    def _has_room(self, text: BatchText) -> bool:
        """Whether the slot takes what is unread; if not, the window moves on or the text ends."""
        if text.has_room:
            return True
        context = text.writing.restart()
        if context is None or not self._room.takes(context, text.writing.request):
            text.writing.reason = "length"
            self._finish(text)
            return False
        if text.is_stepping:
            self._steps.remove(text.slot)
            text.is_stepping = False
        self._cache.truncate(text.slot, 0)
        text.begin(context)
        self._prefill.push(text)
        return False

    def _finish(self, text: BatchText) -> None:
        self._release(text)
        text.send(text.writing.finished())

    def _fail(self, text: BatchText, error: MartletError) -> None:
        self._release(text)
        self._cache.wipe(text.slot)
        text.send(Failed(error))

    def _release(self, text: BatchText) -> None:
        if text.is_stepping:
            self._steps.remove(text.slot)
        elif text in self._prefill:
            self._prefill.remove(text)
        self._cache.truncate(text.slot, 0)
        del self._texts[text.slot]
        heapq.heappush(self._free_slots, text.slot)
