"""How objects of a stream become bytes, and how its reader is watched."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from starlette.types import Receive, Send

from martlet.errors import MartletError
from martlet.server.failures import Failure

__all__ = [
    "ABORT_EXTENSION",
    "NDJSON",
    "SSE",
    "ClientGoneError",
    "Framing",
    "StreamWriter",
    "dump",
    "unless_gone",
]

_T = TypeVar("_T")

ABORT_EXTENSION = "martlet.abort"
"""In the scope of a request: what ends its connection without waiting for its reader."""

# Some clients split a stream at these too, which JSON allows inside of a string.
_OTHER_LINE_ENDS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


class ClientGoneError(MartletError):
    """Nobody reads the answer any more.

    Attributes:
        is_connected: the connection is still there, but what was written to it stays unread.
    """

    http_status = 499

    def __init__(self, message: str, is_connected: bool = False) -> None:
        super().__init__(message)
        self.is_connected = is_connected


def dump(value: Any) -> bytes:
    """Compact JSON on one line, in whole characters of UTF-8; never NaN or Infinity."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.translate(_OTHER_LINE_ENDS).encode("utf-8", "replace")


@dataclass(frozen=True)
class Framing:
    """Server-sent events, or one JSON object a line."""

    kind: Literal["sse", "ndjson"]

    @property
    def media_type(self) -> str:
        """The Content-Type of the stream."""
        is_sse = self.kind == "sse"
        return "text/event-stream; charset=utf-8" if is_sse else "application/x-ndjson"

    def frame(self, value: Any) -> bytes:
        """One object. Never with ``id:`` or ``event:``, after which clients would see comments."""
        return b"data: " + dump(value) + b"\n\n" if self.kind == "sse" else dump(value) + b"\n"

    def heartbeat(self, position: int) -> bytes:
        """A sign of life, with the place in the queue; nothing where lines cannot be comments."""
        if self.kind != "sse":
            return b""
        return b": ping\n\n" if position == 0 else b": ping queue=%d\n\n" % position

    def failure(self, failure: Failure) -> bytes:
        """The object that ends a stream which has failed."""
        is_sse = self.kind == "sse"
        return self.frame(failure.to_openai() if is_sse else failure.to_ollama())

    @property
    def end(self) -> bytes:
        """What stands behind the last object of a stream that has not failed."""
        return b"data: [DONE]\n\n" if self.kind == "sse" else b""


SSE = Framing("sse")
NDJSON = Framing("ndjson")


class StreamWriter:
    """Writes a streamed answer; the status goes out with the first bytes.

    Raises (while writing):
        ClientGoneError: the client left what was written unread for ``write_seconds``.
    """

    def __init__(self, send: Send, framing: Framing, write_seconds: float) -> None:
        self.has_started = False
        self._send = send
        self._framing = framing
        self._write_seconds = write_seconds

    async def write(self, data: bytes) -> None:
        """Send bytes, and the head of the answer before the first."""
        if not self.has_started:
            self.has_started = True
            await self._put({"type": "http.response.start", "status": 200, "headers": self._head()})
        if data:
            await self._put({"type": "http.response.body", "body": data, "more_body": True})

    async def close(self) -> None:
        """The answer is complete."""
        await self._put({"type": "http.response.body", "body": b"", "more_body": False})

    async def _put(self, message: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._write_seconds):
                await self._send(message)
        except TimeoutError:
            raise ClientGoneError(
                f"the client read nothing for {self._write_seconds:g} s and was dropped",
                is_connected=True,
            ) from None

    def _head(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", self._framing.media_type.encode()),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, _T]) -> _T:
    """What ``work`` returns; it is cancelled, with all that it holds, once the client has left.

    The request's body must have been read.

    Raises:
        ClientGoneError: the client has left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError("the client has left")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
