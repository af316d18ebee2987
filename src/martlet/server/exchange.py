"""One request and its answer: jobs are submitted, their events become bytes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Receive, Scope, Send

from martlet.server.answers import Answer
from martlet.server.backend import Job, ServedModel
from martlet.server.failures import describe, log_failure
from martlet.server.heartbeat import Heartbeat
from martlet.server.messages import Event, JobSpec
from martlet.server.service import Service
from martlet.server.wire import (
    ABORT_EXTENSION,
    ClientGoneError,
    Framing,
    StreamWriter,
    dump,
    unless_gone,
)

__all__ = ["Exchange", "send_json"]


class _Events:
    """The events of several jobs, in the order in which they come; a context manager.

    Leaving it cancels the jobs that still run.
    """

    def __init__(self, model: ServedModel, specs: Sequence[JobSpec], client: str) -> None:
        self._model, self._specs, self._client = model, specs, client
        self._jobs: list[Job] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._queue: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue()
        self._num_open = len(specs)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> _Events:
        async with AsyncExitStack() as stack:
            # Where one of them is refused, those before it are called off.
            for spec in self._specs:
                job = self._model.submit(spec, self._client)
                self._jobs.append(await stack.enter_async_context(job))
            self._stack = stack.pop_all()
        self._tasks = [
            asyncio.create_task(self._pump(number, job)) for number, job in enumerate(self._jobs)
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    @property
    def position(self) -> int | None:
        """The place in the queue of the job that is furthest behind; None once all have started."""
        return max((job.position for job in self._jobs if job.is_waiting), default=None)

    async def get(self) -> tuple[int, Event] | None:
        """The next (number of the job, event); None when all jobs have ended.

        Raises:
            MartletError: a job has failed.
        """
        while self._num_open:
            item = await self._queue.get()
            if isinstance(item, Exception):
                raise item
            if item is not None:
                return item
            self._num_open -= 1
        return None

    async def _pump(self, number: int, job: Job) -> None:
        try:
            async for event in job:
                self._queue.put_nowait((number, event))
        except Exception as error:  # whatever it is, the reader gets it
            self._queue.put_nowait(error)
        else:
            self._queue.put_nowait(None)


@dataclass
class Exchange:
    """The answer to a request that a model works on; streamed where there is a framing.

    An ASGI application. A stream's status is sent with its first event, or its first heartbeat
    where that comes before, so what a model refuses at once still gets its own status.
    """

    service: Service
    model: ServedModel
    specs: Sequence[JobSpec]
    client: str
    answer: Answer
    framing: Framing | None = None
    _begun: set[tuple[int, int]] = field(default_factory=set)
    _start: float = field(default_factory=time.monotonic)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or give up once the client has left.

        Raises:
            MartletError: nothing was sent yet, and this is why nothing will be.
        """
        metrics, name = self.service.metrics, self.model.name
        reason = "error"
        try:
            error = await unless_gone(receive, self._respond(send))
            if error is None:
                reason = _reason(self.answer)
            else:
                log_failure(error, scope["state"]["request_id"])
        except ClientGoneError as error:
            reason = "cancelled"
            if not error.is_connected:
                return  # nobody is there to be answered
            await _abort(scope)
            raise
        except asyncio.CancelledError:
            reason = "cancelled"
            raise
        finally:
            metrics.finished.labels(name, reason).inc()
            metrics.request_seconds.labels(name).observe(time.monotonic() - self._start)

    async def _respond(self, send: Send) -> Exception | None:
        """Send the answer; the error with which it had to end in the middle."""
        async with _Events(self.model, self.specs, self.client) as events:
            if self.framing is not None:
                writer = StreamWriter(send, self.framing, self.service.settings.write_seconds)
                return await self._stream(events, writer, self.framing)
            while (item := await events.get()) is not None:
                self._add(*item)
        await send_json(self.answer.whole(), send)
        return None

    async def _stream(
        self, events: _Events, writer: StreamWriter, framing: Framing
    ) -> Exception | None:
        failure: Exception | None = None
        heartbeat = Heartbeat(self.service.settings.heartbeat_seconds, time.monotonic())
        try:
            while (item := await _next(events, writer, framing, heartbeat)) is not None:
                for chunk in self._add(*item):
                    await writer.write(framing.frame(chunk))
                    heartbeat.note_sent(time.monotonic())
            for chunk in self.answer.end():
                await writer.write(framing.frame(chunk))
        except Exception as error:
            if isinstance(error, ClientGoneError) or not writer.has_started:
                raise
            failure = error
        await writer.write(framing.end if failure is None else framing.failure(describe(failure)))
        await writer.close()
        return failure

    def _add(self, job: int, event: Event) -> Sequence[dict[str, Any]]:
        """The objects to stream for an event, which is counted."""
        self._measure(job, event)
        return self.answer.add(job, event)

    def _measure(self, job: int, event: Event) -> None:
        metrics, name = self.service.metrics, self.model.name
        place = (job, event.get("choice", 0))
        if event["event"] == "text" and place not in self._begun:
            self._begun.add(place)
            metrics.first_token_seconds.labels(name).observe(time.monotonic() - self._start)
        if event["event"] == "finished":
            stats = event.get("stats", {})
            num_later = stats.get("output_tokens", 0) - 1
            if num_later > 0:
                seconds = stats["decode_seconds"] / num_later
                metrics.per_token_seconds.labels(name).observe(seconds)


async def _next(
    events: _Events, writer: StreamWriter, framing: Framing, heartbeat: Heartbeat
) -> tuple[int, Event] | None:
    """The next event; while there is none, signs of life are sent."""
    getting = asyncio.ensure_future(events.get())
    try:
        while True:
            wait_seconds = heartbeat.wait_seconds(events.position, time.monotonic())
            done, _ = await asyncio.wait((getting,), timeout=wait_seconds)
            if done:
                return getting.result()
            position = events.position
            if heartbeat.is_due(position, time.monotonic()):
                await writer.write(framing.heartbeat(position or 0))
    finally:
        getting.cancel()


async def _abort(scope: Scope) -> None:
    """End a connection whose reader does not read, with what waits to be sent."""
    extension = scope.get("extensions", {}).get(ABORT_EXTENSION)
    if extension is not None:
        extension["abort"]()
        await asyncio.sleep(0)  # the server is told of the end before it looks for an answer


def _reason(answer: Answer) -> str:
    reasons = [choice.finish_reason for choice in answer.tally.in_order() if choice.finish_reason]
    return reasons[0] if reasons else "result"


async def send_json(body: dict[str, Any], send: Send) -> None:
    """Answer with one object."""
    data = dump(body)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(data)).encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": data})
