"""What every answer carries, and the last place where an error can be turned into one."""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from martlet.server.failures import failure_response, log_failure

__all__ = ["CONTENT_SECURITY_POLICY", "Envelope"]

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_SECURITY_HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}
_EXPOSED_HEADERS = "x-request-id, retry-after, retry-after-ms, x-should-retry"
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class Envelope:
    """The outermost middleware: request id, security headers, and no error without an answer.

    A request's own ``x-request-id`` is kept where it is a plain word of at most 64 characters.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand the request on, and answer for what comes back as an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        has_started = False

        async def send_in_envelope(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                headers = MutableHeaders(scope=message)
                headers["x-request-id"] = request_id
                _add_cors(headers, scope["state"].get("cors_origin"))
                for name, value in _SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            await self._app(scope, receive, send_in_envelope)
        except Exception as error:
            log_failure(error, request_id)
            if has_started:
                # The status is sent; ending here closes the connection before the answer's end.
                return
            response = await failure_response(Request(scope), error)
            await response(scope, receive, send_in_envelope)


def _add_cors(headers: MutableHeaders, origin: str | None) -> None:
    """Let the page of another site that may ask read the answer; never with credentials."""
    if origin is not None:
        headers["access-control-allow-origin"] = origin
        headers["access-control-expose-headers"] = _EXPOSED_HEADERS
        headers.add_vary_header("Origin")


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
