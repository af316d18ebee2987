"""What every route works with, and how a route is declared."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import ASGIApp

from martlet.models.family import Task, who_can
from martlet.server.backend import Backend, ServedModel
from martlet.server.bodies import read_object
from martlet.server.failures import ApiError
from martlet.server.fields import Body, validate
from martlet.server.guard import client_of
from martlet.server.metrics import Metrics
from martlet.server.settings import ServerSettings

__all__ = ["Endpoint", "Handler", "Service"]

_BodyT = TypeVar("_BodyT", bound=Body)
_DEFAULT_NAME = "default"
_ROUTE_OF_TASK: dict[Task, str] = {
    "chat": "/v1/chat/completions",
    "write": "/v1/completions",
    "fill": "/v1/fill",
}


@dataclass(frozen=True)
class Service:
    """The models, the settings and the counters of a server."""

    backend: Backend
    settings: ServerSettings
    metrics: Metrics

    async def read(self, request: Request, schema: type[_BodyT]) -> _BodyT:
        """The checked body of a request.

        Raises:
            ApiError: it is not valid.
        """
        return validate(schema, await read_object(request, self.settings.max_body_bytes))

    def client(self, request: Request, user: str | None = None) -> str:
        """Whom the fair queue counts a request for."""
        address = request.client.host if request.client else ""
        return client_of(request.headers, address, user)

    def find(self, name: str, task: Task | None = None) -> ServedModel:
        """The model of a name, which must be able to do a task.

        "default" is the first model that can. While a model has never been loaded, nobody knows
        what it can do, and it is taken.

        Raises:
            ModelNotFoundError: there is no model of that name.
            ApiError: 400; it cannot do the task; names a model here that can.
        """
        if name == _DEFAULT_NAME and name not in self.backend.models:
            models = list(self.backend.models.values())
            return next((m for m in models if _can(m, task)), models[0])
        model = self.backend.find(name)
        if task is not None and not _can(model, task):
            raise ApiError(400, "unsupported_task", self._cannot(model, task), "model")
        return model

    def _cannot(self, model: ServedModel, task: Task) -> str:
        assert model.hello is not None, "what it can do is known"
        able = " or ".join(model.hello["tasks"])
        others = [m.name for m in self.backend.models.values() if m.hello and _can(m, task)]
        where = [_ROUTE_OF_TASK[word] for word in _ROUTE_OF_TASK if word in model.hello["tasks"]]
        there = (
            f"{' and '.join(others)} can here"
            if others
            else f"no model here can, {who_can(task)} could"
        )
        return (
            f"{model.name} can {able} but not {task}; {there}; "
            f"{model.name} answers at {' and '.join(where)}"
        )


def _can(model: ServedModel, task: Task | None) -> bool:
    if task is None or model.hello is None:
        return True
    # T5 does not go on with a text, but answers one that is put to it the same way.
    is_asked_t5 = task == "write" and model.hello["family"] == "t5"
    return is_asked_t5 or task in model.hello["tasks"]


Handler = Callable[[Service, Request], Awaitable[ASGIApp]]


@dataclass(frozen=True)
class Endpoint:
    """A method at a path.

    Attributes:
        body: the schema of the request's body; None without one.
        answer: JSON schema of the answer; ``stream`` is the media type that it may also come as.
        is_public: answers without the API key.
        in_openapi: is part of the described interface.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    body: type[Body] | None = None
    answer: dict[str, Any] | None = None
    stream: str | None = None
    is_public: bool = False
    in_openapi: bool = True

    def at(self, path: str) -> Endpoint:
        """The same at another path."""
        return dataclasses.replace(self, path=path)
