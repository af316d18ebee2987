"""Decode steps of several texts at a time: what a batch asks for, and how the host does it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from martlet.device.threads import cpu_threads
from martlet.engine.passes import run_stack
from martlet.engine.request import Request, constraint_error
from martlet.engine.sampler import Sample, Sampler
from martlet.engine.sequence_memory import NEXT_STEP
from martlet.errors import CapacityError, MartletError
from martlet.kernels.cpu.int8_linear import MAX_ROWS_INTEGER
from martlet.layers.kv_cache import KVCache
from martlet.memory.capacity import report_out_of_memory
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture

__all__ = ["BatchSteps", "HostSteps", "choose", "make_steps"]


class BatchSteps(Protocol):
    """One token at a time for each slot that was added, in one pass for all of them.

    Slots may be added and removed between two runs. The passes that fill a slot before it is added
    count its tokens in the cache; from ``add`` to ``remove`` the steps do.
    """

    def add(self, slot: int, token_id: int, request: Request, sampler: Sampler) -> None:
        """The slot goes on with ``token_id``, which its cache does not hold yet."""
        ...

    def feed(self, slot: int, token_id: int) -> None:
        """The slot reads this token next instead of the one chosen for it.

        The draw of that choice has been given back (``Sampler.take_back``).
        """
        ...

    def remove(self, slot: int) -> None:
        """The slot rests; it may be filled anew."""
        ...

    def warm_up(self) -> None:
        """Make all steps ready before there is a text, so that none has to wait for that.

        Raises:
            CapacityError: there is no memory for what steps need.
        """
        ...

    def keep_busy(self) -> None:
        """The host has something else to do: where it need not be asked, steps may go on."""
        ...

    def run(self) -> dict[int, Sample | MartletError]:
        """One more token for the slots, which is what each reads next; some may have to wait.

        An error ends that slot only: it gave logits that are not finite, all tokens are suppressed,
        or its constraint failed. It stays until it is removed.

        Raises:
            CapacityError: memory ran out; no slot has moved.
        """
        ...


def make_steps(architecture: Architecture, executor: Executor, cache: KVCache) -> BatchSteps:
    """The steps for where the model runs; ``cache`` holds all slots.

    Raises:
        CapacityError: there is no memory for what steps need.
    """
    if executor.device.type == "cuda":
        from martlet.engine.device_batch import DeviceBatchSteps

        return DeviceBatchSteps(architecture, executor, cache)
    return HostSteps(architecture, executor, cache)


# What a CPU computes with int8 weights has the same bits for so many rows as for one. Past that
# it is bound by arithmetic, and another pass is no slower.
_MOST_ROWS = MAX_ROWS_INTEGER


@dataclass
class _Slot:
    token_id: int  # what it reads next
    request: Request
    sampler: Sampler


class HostSteps:
    """Steps that the host launches and looks at one by one, as on a CPU; see ``BatchSteps``.

    A row of a pass is computed as it would be alone, see ``Batch``, so passes have no more rows
    than that is true for.
    """

    def __init__(self, architecture: Architecture, executor: Executor, cache: KVCache) -> None:
        self._architecture = architecture
        self._executor = executor
        self._cache = cache
        self._slots: dict[int, _Slot] = {}

    def add(self, slot: int, token_id: int, request: Request, sampler: Sampler) -> None:
        """The slot goes on with a token that its cache does not hold yet."""
        assert slot not in self._slots
        self._slots[slot] = _Slot(token_id, request, sampler)

    def feed(self, slot: int, token_id: int) -> None:
        """The slot reads this token next instead of the one chosen for it."""
        self._slots[slot].token_id = token_id

    def remove(self, slot: int) -> None:
        """The slot rests."""
        del self._slots[slot]

    def warm_up(self) -> None:
        """Nothing has to be made ready."""

    def keep_busy(self) -> None:
        """Nothing: the host makes the steps."""

    def run(self) -> dict[int, Sample | MartletError]:
        """One more token for every slot."""
        if not self._slots:
            return {}
        slots = sorted(self._slots)
        with self._counted_whole_or_not(slots):
            groups = [
                slots[first : first + _MOST_ROWS] for first in range(0, len(slots), _MOST_ROWS)
            ]
            logits = [row for group in groups for row in self._logits(group)]
        chosen: dict[int, Sample | MartletError] = {}
        for row, slot in enumerate(slots):
            running = self._slots[slot]
            sample = choose(running.request, running.sampler, logits[row])
            if isinstance(sample, Sample):
                running.token_id = sample.token_id
            chosen[slot] = sample
        return chosen

    def _logits(self, slots: list[int]) -> Tensor:
        """What follows the token of each slot, (number of slots, vocab_size) float32."""
        architecture, executor = self._architecture, self._executor
        cache = self._cache.rows(slots)
        with (
            report_out_of_memory("decoding", NEXT_STEP),
            # As many as for one text: more would wait for each other after every small operation.
            cpu_threads(executor.plan.decode_threads),
            torch.inference_mode(),
        ):
            tokens = [[self._slots[slot].token_id] for slot in slots]
            rows = torch.tensor(tokens, device=executor.device)
            hidden = run_stack(architecture, executor, "decode", rows, cache)
            return architecture.head(executor.fixed(), "decoder", hidden)[:, 0]

    @contextmanager
    def _counted_whole_or_not(self, slots: list[int]) -> Iterator[None]:
        """Forget what the slots have read where memory runs out behind the last block."""
        lengths = self._cache.lengths
        try:
            yield
        except CapacityError:
            for slot in slots:
                self._cache.truncate(slot, lengths[slot])
            raise


def choose(request: Request, sampler: Sampler, logits: Tensor) -> Sample | MartletError:
    """The next token of a text, or why there is none; logits: (vocab_size,)."""
    try:
        return sampler.sample(logits, request.constraint.suppressed())
    except MartletError as error:
        return error
    except Exception as error:  # a constraint is somebody else's code
        return constraint_error(error)
