"""Who may ask: Host, Origin and API key, checked before a route is looked for.

A page of another site must not reach a server on this machine, neither directly (Origin) nor
through a name that suddenly resolves to 127.0.0.1 (Host). Both are checked for every method.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from martlet.server.failures import ApiError
from martlet.server.settings import ServerSettings

__all__ = ["Guard", "client_of"]

_CORS_METHODS = "GET, POST, OPTIONS"
_CORS_HEADERS = "authorization, content-type, x-api-key, x-request-id"
_CORS_AGE_SECONDS = "600"


class Guard:
    """ASGI middleware that lets nobody through who may not ask.

    ``is_public`` says for a method and a path whether the API key is not needed there.
    """

    def __init__(
        self, app: ASGIApp, settings: ServerSettings, is_public: Callable[[str, str], bool]
    ) -> None:
        self._app = app
        self._hosts = _Hosts(settings)
        self._origins = frozenset(origin.lower() for origin in settings.allowed_origins)
        self._key_digest = None if settings.api_key is None else _digest(settings.api_key)
        self._max_header_bytes = settings.max_header_bytes
        self._is_public = is_public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or hand on.

        Raises:
            ApiError: 401, 403 or 431.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        self._check_size(scope)
        host = self._check_host(headers)
        origin = self._check_origin(headers, host)
        if origin is not None:
            scope["state"]["cors_origin"] = origin  # named in whatever is answered
            if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
                await _preflight()(scope, receive, send)
                return
        self._check_key(scope, headers)
        await self._app(scope, receive, send)

    def _check_size(self, scope: Scope) -> None:
        num_bytes = sum(len(name) + len(value) + 4 for name, value in scope["headers"])
        num_bytes += len(scope.get("raw_path", b"")) + len(scope["query_string"])
        if num_bytes > self._max_header_bytes:
            raise ApiError(
                431,
                "headers_too_large",
                f"address and headers have {num_bytes:,} bytes; "
                f"the limit is {self._max_header_bytes:,}",
            )

    def _check_host(self, headers: Headers) -> str:
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._hosts.allow(hosts[0]):
            raise ApiError(
                403,
                "host_not_allowed",
                "this server does not answer to that Host; use its address, "
                "or start it with --allow-host NAME",
            )
        return hosts[0].lower()

    def _check_origin(self, headers: Headers, host: str) -> str | None:
        """The other site that asks and may; None for the own pages and for no page at all."""
        origins = headers.getlist("origin")
        if not origins:
            return None
        origin = origins[0].lower()
        if len(origins) == 1:
            if origin in (f"http://{host}", f"https://{host}"):
                return None
            if origin in self._origins:
                return origins[0]
            if "*" in self._origins:
                return "*"
        raise ApiError(
            403,
            "origin_not_allowed",
            "pages of that origin may not call this server; start it with --allow-origin ORIGIN",
        )

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        if self._key_digest is None or self._is_public(scope["method"], scope["path"]):
            return
        shown = _shown_key(headers)
        if shown is None or not hmac.compare_digest(_digest(shown), self._key_digest):
            raise ApiError(
                401,
                "invalid_api_key",
                "no API key was shown, or another one; "
                "send it as Authorization: Bearer KEY or as X-Api-Key",
                headers={"www-authenticate": "Bearer"},
            )


class _Hosts:
    """The names that a Host header may have.

    Where the server listens on all addresses, any number is one of its own; a name that is
    pointed at this machine from outside is never a number.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._names = {"localhost", settings.host.lower()}
        self._names |= {_without_port(name.lower()) for name in settings.allowed_hosts}
        address = _address(settings.host)
        self._takes_any_address = address is not None and address.is_unspecified

    def allow(self, host: str) -> bool:
        name = _without_port(host.lower())
        address = _address(name)
        if address is not None and (address.is_loopback or self._takes_any_address):
            return True
        return name in self._names


def _without_port(host: str) -> str:
    """The name in a Host header, without brackets; empty for what is none."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port  # raises where it is no number
    except ValueError:
        return ""
    is_host_alone = parts.netloc == host and "@" not in host
    return (parts.hostname or "") if is_host_alone else ""


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("latin-1", "replace")).digest()


def _shown_key(headers: Headers) -> str | None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return headers.get("x-api-key")


def client_of(headers: Headers, address: str, user: str | None) -> str:
    """Whom the fair queue counts a request for: the key's or machine's user of that name.

    The key itself is not part of it, only a digest.
    """
    key = _shown_key(headers)
    owner = address if key is None else hashlib.sha256(key.encode()).hexdigest()[:16]
    return f"{owner}/{user}" if user else owner


def _preflight() -> Response:
    return Response(
        status_code=204,
        headers={
            "access-control-allow-methods": _CORS_METHODS,
            "access-control-allow-headers": _CORS_HEADERS,
            "access-control-max-age": _CORS_AGE_SECONDS,
        },
    )
