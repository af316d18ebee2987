"""The ASGI application: guard, routes, and an answer for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from martlet.server.backend import Backend
from martlet.server.envelope import Envelope
from martlet.server.guard import Guard
from martlet.server.metrics import Metrics
from martlet.server.openapi import describe_api
from martlet.server.pages import STATIC_FOLDER, page_endpoints
from martlet.server.routes import api_endpoints
from martlet.server.service import Endpoint, Service
from martlet.server.settings import ServerSettings

__all__ = ["all_endpoints", "create_app"]


def create_app(
    backend: Backend, settings: ServerSettings, static_folder: Path = STATIC_FOLDER
) -> ASGIApp:
    """The application that answers for a backend, which somebody else starts and stops."""
    service = Service(backend, settings, Metrics(backend))
    endpoints = all_endpoints(static_folder)
    paths: dict[str, dict[str, Endpoint]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method] = endpoint
    routes: list[BaseRoute] = [
        Route(path, _Methods(service, methods), name=path) for path, methods in paths.items()
    ]
    public = {endpoint.path for endpoint in endpoints if endpoint.is_public}

    def is_public(method: str, path: str) -> bool:
        return method in ("GET", "HEAD") and path in public

    router = Router(routes, redirect_slashes=False)
    return Envelope(Guard(_Strict(router), settings, is_public))


def all_endpoints(static_folder: Path = STATIC_FOLDER) -> list[Endpoint]:
    """Every endpoint that the application has."""
    endpoints = api_endpoints()
    document = describe_api(endpoints)

    async def get_openapi(service: Service, request: Request) -> ASGIApp:
        return JSONResponse(document)

    described = Endpoint(
        "GET", "/openapi.json", get_openapi, "This interface, described", in_openapi=False
    )
    return [*endpoints, described, *page_endpoints(endpoints, static_folder)]


class _Methods:
    """The methods of one path."""

    def __init__(self, service: Service, endpoints: Mapping[str, Endpoint]) -> None:
        self._service = service
        self._endpoints = dict(endpoints)
        if "GET" in self._endpoints:
            self._endpoints["HEAD"] = self._endpoints["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["method"])
        if endpoint is None:
            raise HTTPException(405, headers={"allow": ", ".join(sorted(self._endpoints))})
        request = Request(scope, receive)
        answer = await endpoint.handler(self._service, request)
        await answer(scope, receive, send)


class _Strict:
    """Lets the router raise for a path that is not there, rather than answer by itself."""

    def __init__(self, router: Router) -> None:
        self._router = router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self
        await self._router(scope, receive, send)
