"""What the routes use: all models of a server, by name."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from martlet.errors import ModelNotFoundError
from martlet.server.job import Job
from martlet.server.served_model import ServedModel, Shared
from martlet.server.settings import ServerSettings
from martlet.server.supervisor import RestartPolicy

__all__ = ["WORKER_COMMAND", "Backend", "Job", "ServedModel"]

WORKER_COMMAND = (sys.executable, "-m", "martlet.server.worker")
"""Starts the process of a model."""


class Backend:
    """The models of a server, each with its process.

    A context manager of the event loop that serves: entering starts the processes, without waiting
    for them to be ready, and leaving ends them. It may be made before the loop runs.

    Args:
        settings: which models, and the limits of their queues.
        worker_command: what starts the process of a model.
        make_policy: when a model's process is started again; one policy a model.

    Attributes:
        models: by name, in the order of the settings.
        started_at: when it was made, in seconds since 1970.
        is_draining: the server has been told to stop; it takes no more jobs.
    """

    models: Mapping[str, ServedModel]

    def __init__(
        self,
        settings: ServerSettings,
        worker_command: Sequence[str] = WORKER_COMMAND,
        make_policy: Callable[[], RestartPolicy] = RestartPolicy,
    ) -> None:
        self.started_at = time.time()
        self.is_draining = False
        self._changed = asyncio.Event()
        shared = Shared(asyncio.Lock(), self._changed.set)
        self.models = MappingProxyType(
            {
                model.name: ServedModel(settings, model, worker_command, make_policy(), shared)
                for model in settings.models
            }
        )

    async def __aenter__(self) -> Backend:
        for model in self.models.values():
            model.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def find(self, name: str) -> ServedModel:
        """The model of that name.

        Raises:
            ModelNotFoundError: there is none; names those that there are.
        """
        model = self.models.get(name)
        if model is None:
            raise ModelNotFoundError(
                f"no model is called {name!r:.200} here; this server has {', '.join(self.models)}"
            )
        return model

    async def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition of states and jobs is true; it is asked after each change."""
        while True:
            self._changed.clear()
            if condition():
                return
            await self._changed.wait()

    async def wait_until_settled(self) -> None:
        """Wait until every model is ready or has failed."""
        await self.wait_until(
            lambda: all(model.state in ("ready", "failed") for model in self.models.values())
        )

    def drain(self) -> None:
        """Take no more jobs and end those that wait; what runs goes on."""
        self.is_draining = True
        for model in self.models.values():
            model.drain()

    async def wait_until_idle(self) -> None:
        """Wait until no job runs or waits."""
        await self.wait_until(lambda: not any(m.num_jobs for m in self.models.values()))

    def fail_jobs(self) -> None:
        """End all jobs, because the server does."""
        for model in self.models.values():
            model.fail_jobs()

    async def stop(self) -> None:
        """End all jobs and all processes, and wait until these are gone."""
        self.is_draining = True
        await asyncio.gather(*(model.stop() for model in self.models.values()))

    def kill(self) -> None:
        """End all processes now, without waiting."""
        for model in self.models.values():
            model.kill()
