"""HTTP/1.1 as uvicorn reads it, with bounds on what comes before a request is handed on."""

from __future__ import annotations

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from martlet.server.wire import ABORT_EXTENSION

__all__ = ["BoundedProtocol", "bounded_protocol"]

_BYTES_A_HEADER = 4  # colon, space and line end
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
    b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
)
_MESSAGE = (
    '{"error":{"message":"the head of the request has more than %d bytes; send fewer or shorter '
    'headers","type":"invalid_request_error","param":null,"code":"header_too_large"}}'
)


class BoundedProtocol(HttpToolsProtocol):
    """Ends connections whose request heads are too long or too slow.

    The parser alone would collect headers without end and wait for them for ever.
    """

    max_header_bytes: ClassVar[int]
    header_seconds: ClassVar[float]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._head_bytes = 0
        self._is_in_head = True
        self._is_refused = False
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head has to come soon."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head."""
        if self._is_refused:
            return
        if self._is_in_head:
            self._start_timer()
            self._head_bytes += len(data)
        super().data_received(data)
        # Still no end of the head, so all that was counted belongs to it.
        if self._is_in_head and self._head_bytes > self.max_header_bytes:
            self._refuse()

    def on_headers_complete(self) -> None:
        """The head has ended; it is handed on unless it is too long."""
        self._is_in_head = False
        self._head_bytes = 0
        self._stop_timer()
        size = len(self.url) + sum(len(n) + len(v) + _BYTES_A_HEADER for n, v in self.headers)
        if size > self.max_header_bytes:
            self._refuse()
        else:
            # For answers that nobody reads: closing would wait until what is written has been.
            self.scope["extensions"] = {ABORT_EXTENSION: {"abort": self.transport.abort}}
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Of a request that was refused, nothing is kept."""
        if not self._is_refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """What comes now is the next head."""
        if not self._is_refused:
            super().on_message_complete()
        self._is_in_head = True

    def _start_timer(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # the next head can wait until this answer is written
        elif not self.transport.is_closing():
            self.transport.close()

    def _refuse(self) -> None:
        self._is_refused = True
        self._stop_timer()
        if not self.transport.is_closing():
            body = (_MESSAGE % self.max_header_bytes).encode()
            self.transport.write(_TOO_LARGE % (len(body), body))
            self.transport.close()


def bounded_protocol(max_header_bytes: int, header_seconds: float) -> type[BoundedProtocol]:
    """The protocol for uvicorn with these bounds.

    Args:
        max_header_bytes: target and headers of one request.
        header_seconds: from the connection to the end of its first head, and from the first byte
            of every other head to its end.
    """
    bounds = {"max_header_bytes": max_header_bytes, "header_seconds": header_seconds}
    return type("BoundedProtocol", (BoundedProtocol,), bounds)
