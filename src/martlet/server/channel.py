"""A model's process talks to the server: lines of JSON on an inherited socket."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

__all__ = ["Channel"]

# A server that has left so many messages unread does not work any more.
_MOST_UNSENT = 50_000


class Channel:
    """The process's end of the socket. ``send`` is for any thread and never waits.

    ``on_lost`` is called, in whatever thread noticed, when the server is gone or does not read.
    """

    def __init__(self, connection: socket.socket, on_lost: Callable[[], None]) -> None:
        self._connection = connection
        self._on_lost = on_lost
        self._unsent: queue.Queue[Mapping[str, Any] | threading.Event] = queue.Queue(_MOST_UNSENT)
        threading.Thread(target=self._write, name="to server", daemon=True).start()

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the server says, until it is gone."""
        try:
            with self._connection.makefile("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):  # the last line of a server that died may be cut
                        yield json.loads(line)
        except OSError:
            pass
        self._on_lost()

    def send(self, message: Mapping[str, Any]) -> None:
        """Put a message in line; it is not changed afterwards."""
        try:
            self._unsent.put_nowait(message)
        except queue.Full:
            self._on_lost()

    def flush(self, timeout_seconds: float) -> None:
        """Wait until all messages so far are written, at most so long."""
        written = threading.Event()
        try:
            self._unsent.put(written, timeout=timeout_seconds)
        except queue.Full:
            return
        written.wait(timeout_seconds)

    def _write(self) -> None:
        try:
            while True:
                message = self._unsent.get()
                if isinstance(message, threading.Event):
                    message.set()
                    continue
                line = json.dumps(message, separators=(",", ":"), allow_nan=False)
                self._connection.sendall(line.encode() + b"\n")
        except OSError:
            self._on_lost()
