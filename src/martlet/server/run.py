"""From settings to a server that answers, and from the first signal to its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from martlet.errors import MartletError, UsageError
from martlet.server.app import create_app
from martlet.server.backend import WORKER_COMMAND, Backend
from martlet.server.protocol import bounded_protocol
from martlet.server.settings import ServerSettings

__all__ = ["Announcer", "serve"]

_LOG = logging.getLogger("martlet.server")

_BACKLOG = 128
_KEEP_ALIVE_SECONDS = 30
# How long answers that have been given up may take to be sent.
_FAREWELL_SECONDS = 3


class Announcer(Protocol):
    """Tells people or programs how the server does."""

    def listening(self, address: str) -> None:
        """The port is open; models may still be loading."""
        ...

    def settled(self, backend: Backend) -> None:
        """Every model is ready or has failed."""
        ...


def serve(
    settings: ServerSettings,
    announcer: Announcer,
    worker_command: Sequence[str] = WORKER_COMMAND,
) -> None:
    """Serve until SIGTERM or SIGINT; what runs then may end within ``drain_seconds``.

    A second signal ends the process at once.

    Raises:
        UsageError: the address cannot be listened on.
        MartletError: no model could be loaded.
    """
    listener = _listen(settings.host, settings.port)
    try:
        asyncio.run(_Service(settings, announcer, worker_command).run(listener))
    finally:
        listener.close()


class _Service:
    """One server, from its first signal of life to its last."""

    def __init__(
        self, settings: ServerSettings, announcer: Announcer, worker_command: Sequence[str]
    ) -> None:
        self._settings = settings
        self._announcer = announcer
        self._backend = Backend(settings, worker_command)
        self._server = _server(create_app(self._backend, settings), settings)
        self._stop_requested = asyncio.Event()
        self._failure: MartletError | None = None

    async def run(self, listener: socket.socket) -> None:
        """Serve on a socket that is bound already."""
        with _signals(self._on_signal):
            async with self._backend:
                watch = asyncio.create_task(self._watch_models())
                end = asyncio.create_task(self._end_when_asked())
                self._announcer.listening(_address(listener))
                await self._server.serve(sockets=[listener])
                for task in (watch, end):
                    task.cancel()
        if self._failure is not None:
            raise self._failure

    def _on_signal(self, number: int) -> None:
        if self._stop_requested.is_set():
            self._backend.kill()
            os._exit(128 + number)
        self._stop_requested.set()

    async def _watch_models(self) -> None:
        """Say when all models are loaded; end the server where none can be."""
        await self._backend.wait_until_settled()
        models = self._backend.models.values()
        if all(model.state == "failed" for model in models):
            self._failure = next(model.failure_error for model in models)
            self._server.should_exit = True
            return
        self._announcer.settled(self._backend)

    async def _end_when_asked(self) -> None:
        """After a signal: no new work, time for what runs, an error for the rest."""
        await self._stop_requested.wait()
        _LOG.info("stopping; running answers have %g s", self._settings.drain_seconds)
        self._backend.drain()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._backend.wait_until_idle(), self._settings.drain_seconds)
        self._backend.fail_jobs()
        self._server.should_exit = True


class _Server(uvicorn.Server):
    """uvicorn without its own signal handlers, which know nothing of running answers."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the service."""
        yield


def _server(app: ASGIApp, settings: ServerSettings) -> _Server:
    return _Server(
        uvicorn.Config(
            app,
            http=bounded_protocol(settings.max_header_bytes, settings.header_seconds),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=True,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_FAREWELL_SECONDS,
        )
    )


def _listen(host: str, port: int) -> socket.socket:
    """A socket that is bound, so that nothing is loaded for a port that is taken."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"{host} is no address of this machine: {error.strerror}") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise UsageError(_bind_problem(host, port, error)) from error
    listener.setblocking(False)
    return listener


def _bind_problem(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return (
            f"port {port} of {host} is taken by another program; "
            "choose another with --port, or let --port 0 find one"
        )
    if error.errno == errno.EACCES:
        return f"port {port} is for privileged programs; choose one from 1024 on with --port"
    return f"cannot listen on {host} port {port}: {error.strerror}; choose another --host"


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextlib.contextmanager
def _signals(handler: Callable[[int], None]) -> Iterator[None]:
    """SIGTERM and SIGINT go to the handler, in the thread of the event loop."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, handler, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
