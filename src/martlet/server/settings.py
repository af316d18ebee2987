"""What a server was started with; checked before anything listens or loads."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from martlet.errors import UsageError

__all__ = ["ModelSettings", "ServerSettings"]

_LARGEST_PORT = 65535


@dataclass(frozen=True)
class ModelSettings:
    """A model to serve.

    Attributes:
        name: what clients call it.
        folder: its model folder, an absolute path.
        options: keyword arguments of ``martlet.load``; numbers, strings and None only.
    """

    name: str
    folder: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ServerSettings:
    """Address, keys and limits of a server.

    Attributes:
        models: in the order in which they are listed.
        host: address to listen on; any but a loopback address needs an ``api_key``.
        port: 0 takes a free one.
        api_key: what clients must show as a bearer token; None = nothing.
        allowed_hosts: names beside the loopback ones that a Host header may have.
        allowed_origins: origins of other pages that may call the server from a browser.
        max_queue: jobs of a model that may wait while all of its slots are taken.
        max_queued_tokens: what the prompts of the jobs that wait may have together; a character
            counts as a token, and each choice counts.
        max_jobs_per_client: jobs of one client that a model has at a time; None = no limit.
        max_tokens: what a request may ask for at most; None = as much as a slot holds.
        max_choices: ``n`` of a request at most.
        request_seconds: after which a request is ended, waiting included.
        write_seconds: how long a client may leave written bytes unread before it is dropped.
        drain_seconds: how long running jobs may go on once the server has been told to stop.
        heartbeat_seconds: longest silence of a stream.
        header_seconds: how long a connection may take to send the head of its first request.
        max_body_bytes: of a request.
        max_header_bytes: of all header lines of a request together.
        max_connections: open at a time; more are answered with 503.

    Raises:
        UsageError: a value is not valid, two models have one name, or the address can be reached
            from other machines and there is no key.
    """

    models: tuple[ModelSettings, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = field(default=None, repr=False)
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_queue: int = 32
    max_queued_tokens: int = 65536
    max_jobs_per_client: int | None = None
    max_tokens: int | None = None
    max_choices: int = 4
    request_seconds: float = 600.0
    write_seconds: float = 60.0
    drain_seconds: float = 30.0
    heartbeat_seconds: float = 10.0
    header_seconds: float = 10.0
    max_body_bytes: int = 2 << 20
    max_header_bytes: int = 32 << 10
    max_connections: int = 512

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("there is no model to serve; name at least one")
        self._check_names()
        self._check_numbers()
        if self.api_key is not None and not _is_token(self.api_key):
            raise UsageError(
                f"the API key has {len(self.api_key)} characters, some of which cannot stand in a "
                "header, or none at all; use visible ASCII characters without spaces"
            )
        if self.api_key is None and not self.is_loopback:
            raise UsageError(
                f"{self.host} can be reached from other machines and there is no API key; "
                "give one with --api-key-file or MARTLET_API_KEY, or listen on 127.0.0.1"
            )

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def _check_names(self) -> None:
        names = [model.name for model in self.models]
        for name in names:
            if names.count(name) > 1:
                raise UsageError(
                    f"two models are called {name!r}; clients choose by name, so rename a folder"
                )

    def _check_numbers(self) -> None:
        if not 0 <= self.port <= _LARGEST_PORT:
            raise UsageError(f"port is {self.port}; it must be from 0 to {_LARGEST_PORT}")
        for name, smallest in (
            ("max_queue", 0),
            ("max_queued_tokens", 1),
            ("max_jobs_per_client", 1),
            ("max_tokens", 1),
            ("max_choices", 1),
            ("request_seconds", 0.001),
            ("write_seconds", 0.001),
            ("drain_seconds", 0.0),
            ("heartbeat_seconds", 0.001),
            ("header_seconds", 0.001),
            ("max_body_bytes", 1),
            ("max_header_bytes", 1),
            ("max_connections", 1),
        ):
            value = getattr(self, name)
            if value is not None and not smallest <= value < float("inf"):
                raise UsageError(f"{name} is {value}; it must be at least {smallest:g}")


def _is_token(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key
