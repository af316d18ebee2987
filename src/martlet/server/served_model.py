"""A model as the routes see it: jobs are sent to its process, events come back.

Everything here runs in the thread of the event loop, and nothing blocks it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from martlet.errors import MartletError, UnavailableError
from martlet.server.admission import Admission, Limits, bounded_retry_after, cost_of
from martlet.server.job import Job
from martlet.server.messages import (
    ErrorDetails,
    Event,
    HelloMessage,
    JobSpec,
    StatusMessage,
    error_of,
)
from martlet.server.settings import ModelSettings, ServerSettings
from martlet.server.supervisor import RestartPolicy, Supervisor

__all__ = ["ModelState", "ServedModel", "Shared"]

ModelState = Literal["loading", "ready", "restarting", "failed"]

_STOP_GRACE_SECONDS = 5.0
# What loading is expected to take before it has been seen.
_USUAL_LOAD_SECONDS = 5.0
_RETRY_AFTER_SHUTDOWN_SECONDS = 5.0


@dataclass(frozen=True)
class Shared:
    """What the models of a server share.

    load_turn: see ``Supervisor``.
    on_change: called when a model's state changes, and when a job comes, starts or ends.
    """

    load_turn: asyncio.Lock
    on_change: Callable[[], None]


class ServedModel:
    """A model with its process, its queue, and its counters.

    Attributes:
        name: what clients call it.
        created: when the server began to serve it, in seconds since 1970.
        state: "loading" first; "restarting" from the loss of its process until the next is ready;
            "failed" once there will be no next.
        failure: why it is restarting or has failed; None otherwise.
        hello: what its process said when it was ready, kept while it restarts; None before.
        status: the newest figures of its process; None while there is none.
        num_rejected_total: jobs that were not taken, by reason: "queue", "tokens", "client",
            "length", "unavailable".
        num_restarts: processes that were started after the first.
        max_queue: jobs that may wait; see ``ServerSettings``.
    """

    def __init__(
        self,
        settings: ServerSettings,
        model: ModelSettings,
        worker_command: Sequence[str],
        policy: RestartPolicy,
        shared: Shared,
    ) -> None:
        self.name = model.name
        self.created = int(time.time())
        self.state: ModelState = "loading"
        self.failure: str | None = None
        self._failure_details: ErrorDetails | None = None
        self.hello: HelloMessage | None = None
        self.status: StatusMessage | None = None
        self._status_at = 0.0
        self.num_rejected_total: Counter[str] = Counter()
        self.num_restarts = 0
        self.max_queue = settings.max_queue
        self._on_change = shared.on_change
        self._request_seconds = settings.request_seconds
        self._is_draining = False
        self._ready_at = time.monotonic() + _USUAL_LOAD_SECONDS
        self._jobs: dict[str, Job] = {}
        self._num_jobs_total = 0
        self._admission = Admission(
            Limits(settings.max_queue, settings.max_queued_tokens, settings.max_jobs_per_client)
        )
        self._supervisor = Supervisor(
            model.name,
            worker_command,
            {"op": "configure", "folder": model.folder, "options": dict(model.options)},
            self,
            policy,
            shared.load_turn,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def num_running(self) -> int:
        """Jobs of which a choice is being written."""
        return self._admission.num_running

    @property
    def num_waiting(self) -> int:
        """Jobs of which no choice has been started."""
        return self._admission.num_waiting

    @property
    def num_running_texts(self) -> int:
        """Choices that have a slot, as the process told last; jobs until it has told anything."""
        return self.status["num_running"] if self.status else self.num_running

    @property
    def num_waiting_texts(self) -> int:
        """Choices that wait for a slot, as the process told last."""
        return self.status["num_waiting"] if self.status else self.num_waiting

    @property
    def num_jobs(self) -> int:
        """Jobs that have not ended."""
        return self.num_running + self.num_waiting

    @property
    def pid(self) -> int | None:
        """Its process."""
        return self._supervisor.pid

    @property
    def retry_after_seconds(self) -> float:
        """When a client that cannot be served now shall come back; 1 to 120."""
        if self.state == "ready":
            return self._admission.retry_after_seconds()
        return bounded_retry_after(self._ready_at - time.monotonic())

    @property
    def failure_error(self) -> MartletError:
        """Why it has failed, as the error that ends a program."""
        if self._failure_details is not None:
            return error_of(self._failure_details)
        return MartletError(f"{self.name} could not be loaded: {self.failure}")

    def submit(self, job: JobSpec, client: str) -> Job:
        """Send a job to the model.

        Nothing is tokenised before it is taken, and one that is refused is never sent.

        Args:
            job: checked already; what only the model can check comes as an error of the job.
            client: whom the fair queue counts it for, such as a key or an address.

        Raises:
            OverloadedError: too much waits already; knows when to try again.
            UnavailableError: the model is loading, restarting or down, or the server shuts down.
            ContextLengthError: the prompt is longer than all that may wait together.
        """
        self._require_available()
        cost = cost_of(job, client)
        refusal = self._admission.refusal(cost)
        if refusal is not None:
            self.num_rejected_total[refusal.reason] += 1
            raise refusal.error
        self._num_jobs_total += 1
        job_id = f"{self.name}-{self._num_jobs_total}"
        taken = Job(job_id, self, max(1, job["num_choices"]), self._request_seconds)
        self._jobs[job_id] = taken
        self._admission.add(job_id, cost)
        self._supervisor.send({"op": "submit", "id": job_id, "client": client, "job": job})
        self._on_change()
        return taken

    def is_waiting(self, job_id: str) -> bool:
        """See ``Job.is_waiting``."""
        return self._admission.is_waiting(job_id)

    def position(self, job_id: str) -> int:
        """See ``Job.position``."""
        return self._admission.position(job_id)

    def cancel(self, job_id: str) -> None:
        """Forget a job and tell the process, if it still has it."""
        if self._forget(job_id) is not None:
            self._supervisor.send({"op": "cancel", "id": job_id})

    def start(self) -> None:
        """Start the process; returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._supervisor.run(), name=f"model {self.name}")

    def drain(self) -> None:
        """Take no more jobs, and end those that wait; what runs goes on."""
        self._is_draining = True
        for job_id in [i for i in self._jobs if self._admission.is_waiting(i)]:
            self._fail_job(job_id, _shutting_down())

    def fail_jobs(self) -> None:
        """End all jobs, because the server does."""
        for job_id in list(self._jobs):
            self._fail_job(job_id, _shutting_down())

    async def stop(self, grace_seconds: float = _STOP_GRACE_SECONDS) -> None:
        """End all jobs and the process, and wait until it is gone."""
        self._is_draining = True
        self.fail_jobs()
        await self._supervisor.stop(grace_seconds)
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def kill(self) -> None:
        """End the process now."""
        self._supervisor.kill()

    def on_message(self, message: dict[str, Any]) -> None:
        """See ``WorkerHandler``."""
        match message["op"]:
            case "event":
                self._on_event(message)  # type: ignore[arg-type]
            case "status":
                self._on_status(message)  # type: ignore[arg-type]
            case "hello":
                self._on_hello(message)  # type: ignore[arg-type]
            case unknown:
                raise AssertionError(f"no message is called {unknown}")

    def on_lost(self, reason: str, error: ErrorDetails | None, delay_seconds: float | None) -> None:
        """See ``WorkerHandler``."""
        self.status = None
        self.failure = reason
        self._failure_details = error
        if delay_seconds is None:
            self.state = "failed"
        else:
            self.state = "restarting"
            self.num_restarts += 1
            load_seconds = self.hello["load_seconds"] if self.hello else _USUAL_LOAD_SECONDS
            self._ready_at = time.monotonic() + delay_seconds + load_seconds
        for job_id in list(self._jobs):
            self._fail_job(job_id, self._unavailable())
        self._on_change()

    def _on_hello(self, hello: HelloMessage) -> None:
        self.hello = hello
        self.state, self.failure = "ready", None
        self._admission.num_slots = hello["num_slots"]
        if hello["tokens_per_second"] is not None:
            self._admission.expected_tokens_per_second = hello["tokens_per_second"]
        self._on_change()

    def _on_status(self, status: StatusMessage) -> None:
        before, since = self.status, self._status_at
        self.status, self._status_at = status, time.monotonic()
        # With other texts at the end than at the beginning, it would be the speed of neither.
        if before is not None and before["num_running"] == status["num_running"]:
            num_tokens = status["output_tokens_total"] - before["output_tokens_total"]
            speed = num_tokens / max(self._status_at - since, 1e-6)
            self._admission.measure(speed, status["num_running"])

    def _on_event(self, event: Event) -> None:
        job = self._jobs.get(event["id"])
        if job is None:  # cancelled while the event was on its way
            return
        match event["event"]:
            case "started":
                self._admission.start(job.id)
                self._on_change()
            case "text":
                self._admission.count_output(job.id, event["choice"], 1)
            case "finished":
                self._admission.end_choice(job.id, event["choice"])
            case "error":
                self._forget(job.id)
                job.put(error_of(event["error"]))
                return
        job.put(event)
        if job.is_complete:
            self._forget(job.id)

    def _require_available(self) -> None:
        if self._is_draining:
            self.num_rejected_total["unavailable"] += 1
            raise _shutting_down()
        if self.state != "ready":
            self.num_rejected_total["unavailable"] += 1
            raise self._unavailable()

    def _unavailable(self) -> UnavailableError:
        if self.state == "failed":
            return UnavailableError(f"{self.name} is down and stays down: {self.failure}")
        seconds = self.retry_after_seconds
        what = "is loading" if self.state == "loading" else "is being restarted"
        return UnavailableError(f"{self.name} {what}; try again in {seconds:.0f} s", seconds)

    def _fail_job(self, job_id: str, error: MartletError) -> None:
        job = self._forget(job_id)
        if job is not None:
            self._supervisor.send({"op": "cancel", "id": job_id})
            job.put(error)

    def _forget(self, job_id: str) -> Job | None:
        self._admission.remove(job_id)
        job = self._jobs.pop(job_id, None)
        self._on_change()
        return job


def _shutting_down() -> UnavailableError:
    return UnavailableError(
        f"the server is shutting down; try again in {_RETRY_AFTER_SHUTDOWN_SECONDS:.0f} s",
        _RETRY_AFTER_SHUTDOWN_SECONDS,
    )
