"""One request on its way: what its reader gets, and how it is called off."""

from __future__ import annotations

import asyncio
from typing import Protocol

from martlet.errors import MartletError, UnavailableError
from martlet.server.messages import Event

__all__ = ["Job", "JobQueue"]


class JobQueue(Protocol):
    """Where jobs were submitted."""

    def is_waiting(self, job_id: str) -> bool:
        """Whether no choice of the job has left the queue."""
        ...

    def position(self, job_id: str) -> int:
        """Jobs that were submitted before this one and wait like it; 0 once it runs."""
        ...

    def cancel(self, job_id: str) -> None:
        """Forget a job and stop what runs of it."""
        ...


class Job:
    """One request that was sent to a model. Leaving its context cancels what still runs.

    Iterating gives the events in the order in which they came, of all choices, and ends after the
    last. A wait that is cancelled, by a time limit for one, loses no event: wait again.

    Attributes:
        id: unique in this server.
        is_complete: its last event has come, whether it was read or not.

    Raises (while iterating):
        MartletError: the job has failed; the error is the one that the model's process named.
        UnavailableError: the process was lost, the server shuts down, or the job took longer than
            the server allows.
    """

    def __init__(
        self, job_id: str, queue: JobQueue, num_choices: int, limit_seconds: float
    ) -> None:
        self.id = job_id
        self.is_complete = False
        self._queue = queue
        self._choices_left = num_choices
        # Not bounded here: a job has at most max_tokens events a choice.
        self._events: asyncio.Queue[Event | MartletError | None] = asyncio.Queue()
        self._is_over = False
        self._limit_seconds = limit_seconds
        self._deadline = asyncio.get_running_loop().time() + limit_seconds

    async def __aenter__(self) -> Job:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cancel()

    @property
    def is_waiting(self) -> bool:
        """Whether nothing of it has been started."""
        return self._queue.is_waiting(self.id)

    @property
    def position(self) -> int:
        """Jobs of this model that were submitted before it and have not started; 0 once it did."""
        return self._queue.position(self.id)

    def __aiter__(self) -> Job:
        return self

    async def __anext__(self) -> Event:
        if self._is_over:
            raise StopAsyncIteration
        try:
            async with asyncio.timeout_at(self._deadline):
                event = await self._events.get()
        except TimeoutError:
            await self.cancel()
            raise UnavailableError(
                f"the request took longer than {self._limit_seconds:g} s, which is the limit of "
                "this server; ask for fewer tokens"
            ) from None
        if event is None:
            self._is_over = True
            raise StopAsyncIteration
        if isinstance(event, MartletError):
            self._is_over = True
            raise event
        return event

    async def cancel(self) -> None:
        """End the job; the model stops at its next step. Nothing happens where it has ended."""
        self._is_over = True
        self._queue.cancel(self.id)

    def put(self, event: Event | MartletError) -> None:
        """Hand over an event, or the error that ends the job; for the model alone."""
        self._events.put_nowait(event)
        if isinstance(event, MartletError):
            self.is_complete = True
            return
        if event["event"] == "finished":
            self._choices_left -= 1
        self.is_complete = event["event"] == "result" or self._choices_left == 0
        if self.is_complete:
            self._events.put_nowait(None)
