"""Tokens that are chosen where the model runs, some of them before anybody asks for them."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from martlet.engine.decode import DecodeLoop
from martlet.engine.sampler import Sample, Sampler
from martlet.engine.sequence import RunningSequence
from martlet.engine.sequence_memory import NEXT_STEP
from martlet.memory.capacity import report_out_of_memory

__all__ = ["DeviceSteps"]


class DeviceSteps:
    """Goes on with one sequence as its sampler would, by decode steps.

    ``num_ahead`` is how many steps are launched beyond the one that is read. What ran ahead is
    forgotten as soon as the sequence is used in another way.
    """

    def __init__(
        self,
        sequence: RunningSequence,
        sampler: Sampler,
        ending_ids: Collection[int],
        num_ahead: int,
    ) -> None:
        self.sequence = sequence
        self._sampler = sampler
        self._ending_ids = sorted(ending_ids)
        self._num_ahead = num_ahead
        self._loop: DecodeLoop | None = None
        self._num_read = 0
        self._last: int | None = None  # what the step that is read next has read

    def next(self, token_id: int, suppressed: Tensor | None, most_tokens: int) -> Sample:
        """The token after ``token_id``; does not count it for penalties: see ``Sampler.accept``.

        ``suppressed`` may only change while nothing runs ahead. No step is launched beyond
        ``most_tokens`` more tokens.

        Shapes:
            suppressed: (vocab_size,) bool, True = must not be chosen

        Raises:
            MartletError: a logit is not finite, or every token is suppressed.
            CapacityError: memory ran out.
        """
        most_steps = min(self.sequence.free_tokens, most_tokens)
        assert most_steps > 0
        with report_out_of_memory("decoding", NEXT_STEP):
            loop = self._continued(token_id)
            if loop is None:
                loop = self._begin(token_id, suppressed, most_steps)
            elif self._num_ahead == 0:
                loop.suppress(suppressed)
            num_running = loop.num_launched - self._num_read
            loop.launch(min(1 + self._num_ahead, most_steps) - num_running)
            chosen, logprob = loop.read(self._num_read)
        self._num_read += 1
        self.sequence.num_tokens += 1
        self._last = chosen
        return self._sampler.take(chosen, logprob)

    def _continued(self, token_id: int) -> DecodeLoop | None:
        """The steps that are under way, if the next of them reads this token."""
        is_stepping = self.sequence.is_stepping and self._last == token_id
        return self._loop if is_stepping else None

    def _begin(self, token_id: int, suppressed: Tensor | None, most_steps: int) -> DecodeLoop:
        loop = self._loop = self.sequence.begin_steps()
        is_plain = self._sampler.is_plain
        loop.begin(
            [token_id],
            suppressed,
            self._ending_ids,
            "most_probable" if is_plain else "sampled",
            () if is_plain else [self._sampler.chances(most_steps)],
        )
        self._num_read = 0
        return loop
