"""What tests of batches share: who listens to a text, and a text on its own to compare with."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from martlet.engine.batch import Failed, Started
from martlet.engine.request import Finished, TokenEvent


@dataclass
class Heard:
    """The events of one request, as a batch delivers them."""

    events: list = field(default_factory=list)

    def __call__(self, event) -> None:
        assert not self.is_over, "an event after the last one"
        self.events.append(event)

    @property
    def is_over(self) -> bool:
        return bool(self.events) and isinstance(self.events[-1], Finished | Failed)

    @property
    def is_started(self) -> bool:
        return any(isinstance(event, Started) for event in self.events)

    @property
    def tokens(self) -> list[TokenEvent]:
        return [event for event in self.events if isinstance(event, TokenEvent)]

    @property
    def error(self):
        return self.events[-1].error if isinstance(self.events[-1], Failed) else None

    @property
    def reason(self) -> str:
        return self.events[-1].stats.finish_reason

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.tokens) + self.events[-1].text


@dataclass
class Batching:
    """Runs requests in a batch, and alone."""

    heard = Heard

    def run(self, batch, requests, clients=None) -> list[Heard]:
        """All of them at once, to their ends; the slots must be empty then."""
        heard = [Heard() for _ in requests]
        for index, request in enumerate(requests):
            batch.submit(request, heard[index], "" if clients is None else clients[index])
        while batch.step():
            pass
        assert all(each.is_over for each in heard)
        self.require_empty(batch)
        return heard

    def alone(self, generator, request) -> Heard:
        return Heard(list(generator.generate(request)))

    def require_empty(self, batch) -> None:
        state = batch.state()
        assert (state.num_running, state.num_waiting, state.cache_tokens) == (0, 0, 0)
        assert set(batch._cache.lengths) == {0}
        assert set(batch._cache.encoder_lengths) == {0}
        assert sorted(batch._free_slots) == list(range(batch.limits.num_slots))

    def require_same(self, heard: Heard, alone: Heard, exactly: bool = False) -> None:
        """The same text, ended in the same way; ``exactly``: log-probabilities to the last bit.

        Products of float weights over another number of rows are summed in another order.
        """
        assert heard.error is None
        assert [event.token_id for event in heard.tokens] == [e.token_id for e in alone.tokens]
        assert [event.text for event in heard.tokens] == [e.text for e in alone.tokens]
        assert (heard.text, heard.reason) == (alone.text, alone.reason)
        for event, other in zip(heard.tokens, alone.tokens, strict=True):
            if exactly or other.logprob is None:
                assert event.logprob == other.logprob
            else:
                assert event.logprob == pytest.approx(other.logprob, abs=1e-4)


@pytest.fixture(scope="session")
def batching() -> Batching:
    return Batching()
