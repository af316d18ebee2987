"""The process of one model: started, watched, started again where it dies, and never left behind.

No module of this process imports torch; all that a model needs of memory and devices is in the
other process, so what goes wrong there cannot take the port down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from martlet.server.messages import ConfigureMessage, ErrorDetails

__all__ = ["MAX_RESTARTS", "RestartPolicy", "Supervisor", "WorkerHandler"]

_LOG = logging.getLogger("martlet.server.model")

MAX_RESTARTS = 5
"""Restarts within ``_RESTART_WINDOW_SECONDS`` after which a model stays down."""
_RESTART_WINDOW_SECONDS = 600.0
_FIRST_DELAY_SECONDS = 0.5
# A line is one message; the longest are embeddings of a whole request.
_LONGEST_LINE_BYTES = 64 << 20
_STDERR_CHUNK_BYTES = 1 << 16
# How long messages that have piled up may keep the event loop.
_LONGEST_TURN_SECONDS = 0.01
_LONGEST_LOG_LINE = 2000
_LONGEST_REASON = 300
# A process that has closed its end is expected to be gone after this.
_EXIT_GRACE_SECONDS = 5.0
# Not the business of a model's process.
_SECRET_VARIABLES = ("MARTLET_API_KEY",)


class WorkerHandler(Protocol):
    """Who is told what the process says and that it is gone."""

    def on_message(self, message: dict[str, Any]) -> None:
        """A message of the process, never "failure"."""
        ...

    def on_lost(self, reason: str, error: ErrorDetails | None, delay_seconds: float | None) -> None:
        """The process is gone; the next is started after the delay, or never where it is None.

        ``error`` is what the process itself named as the cause of not loading, if it did.
        """
        ...


class RestartPolicy:
    """After which delay a process is started again: 0.5 s doubling, at most 5 in 10 minutes."""

    def __init__(self, first_delay_seconds: float = _FIRST_DELAY_SECONDS) -> None:
        self._first_delay_seconds = first_delay_seconds
        self._restarts: deque[float] = deque()

    def next_delay_seconds(self, now_seconds: float) -> float | None:
        """The delay, counted as a restart; None where there were too many lately."""
        while self._restarts and self._restarts[0] < now_seconds - _RESTART_WINDOW_SECONDS:
            self._restarts.popleft()
        if len(self._restarts) >= MAX_RESTARTS:
            return None
        delay = self._first_delay_seconds * 2.0 ** len(self._restarts)
        self._restarts.append(now_seconds)
        return delay


class Supervisor:
    """Keeps one process of a model running until it is stopped.

    Args:
        name: what the model is called in logs.
        command: program and arguments; the number of the inherited socket is put behind them.
        configuration: the first message to each process.
        handler: told of everything, in the thread of the event loop.
        policy: when to start again.
        load_turn: held while a process loads, so that models that share it plan their memory one
            after the other; each sees what the others have taken.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        configuration: ConfigureMessage,
        handler: WorkerHandler,
        policy: RestartPolicy,
        load_turn: asyncio.Lock,
    ) -> None:
        self._name = name
        self._command = tuple(command)
        self._configuration = configuration
        self._handler = handler
        self._policy = policy
        self._load_turn = load_turn
        self._has_answered = asyncio.Event()  # the process has loaded, or has failed to
        self._was_ready = False
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._failure: ErrorDetails | None = None
        self._last_stderr_line = ""
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """The process that runs now."""
        return None if self._process is None else self._process.pid

    async def run(self) -> None:
        """Start the process, and again where it ends, until ``stop`` or until that is pointless."""
        while True:
            reason = await self._run_once()
            if self._is_stopping:
                return
            delay = self._next_delay_seconds()
            after = "it stays down" if delay is None else f"next start in {delay:g} s"
            _LOG.error("%s: %s; %s", self._name, reason, after)
            self._handler.on_lost(reason, self._failure, delay)
            if delay is None:
                return
            await asyncio.sleep(delay)

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand a message to the process; nothing happens where there is none."""
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def stop(self, grace_seconds: float) -> None:
        """End the process: asked first, killed after the grace."""
        self._is_stopping = True
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await self._wait_or_kill(process, grace_seconds)

    def kill(self) -> None:
        """End the process now, without waiting for it."""
        self._is_stopping = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def _run_once(self) -> str:
        """Start a process and read what it says until it is gone; why it went."""
        self._failure, self._last_stderr_line = None, ""
        self._has_answered.clear()
        ours, theirs = socket.socketpair()
        try:
            process = self._process = await self._start(theirs)
        except OSError as error:
            ours.close()
            return f"the model's process could not be started: {error.strerror or error}"
        finally:
            theirs.close()
        if self._is_stopping:  # the call to stop came while it was being started
            self.kill()
        # Nothing can be awaited before this, so the process is not left behind by a cancellation.
        tasks = [asyncio.create_task(self._copy_stderr(process))]
        try:
            reader, self._writer = await asyncio.open_connection(
                sock=ours, limit=_LONGEST_LINE_BYTES
            )
            tasks.append(asyncio.create_task(self._let_load()))
            await self._read(reader)
            await self._wait_or_kill(process, _EXIT_GRACE_SECONDS)
            # What it said last; a child of its own may hold the pipe open.
            await asyncio.wait(tasks[:1], timeout=_EXIT_GRACE_SECONDS)
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            for task in tasks:
                task.cancel()
            if self._writer is not None:
                self._writer.close()
                self._writer = None
        return self._reason(process.returncode)

    async def _start(self, theirs: socket.socket) -> asyncio.subprocess.Process:
        environment = {k: v for k, v in os.environ.items() if k not in _SECRET_VARIABLES}
        return await asyncio.create_subprocess_exec(
            *self._command,
            str(theirs.fileno()),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(theirs.fileno(),),
            env=environment,
            # Ctrl-C in a terminal is for the server, which lets running answers end.
            start_new_session=True,
        )

    async def _let_load(self) -> None:
        """Send the configuration once it is this model's turn; the turn ends with the loading."""
        async with self._load_turn:
            self.send(self._configuration)
            await self._has_answered.wait()

    def _next_delay_seconds(self) -> float | None:
        failure = self._failure
        # What a first start says of itself will not change; later, memory may be free again.
        if failure is not None and not (self._was_ready and failure["is_worth_retrying"]):
            return None
        return self._policy.next_delay_seconds(time.monotonic())

    async def _read(self, reader: asyncio.StreamReader) -> None:
        """Pass on messages until the other end is closed."""
        loop = asyncio.get_running_loop()
        turn_end = loop.time() + _LONGEST_TURN_SECONDS
        while True:
            # Lines that are there already are read without a pause; others want the loop, too.
            if loop.time() > turn_end:
                await asyncio.sleep(0)
                turn_end = loop.time() + _LONGEST_TURN_SECONDS
            try:
                line = await reader.readline()
            except (ValueError, OSError):  # longer than any message, or torn down by a signal
                return
            if not line.endswith(b"\n"):
                return
            message = json.loads(line)
            match message["op"]:
                case "failure":
                    self._failure = message["error"]
                    continue
                case "hello":
                    self._was_ready = True
                    self._has_answered.set()
            self._handler.on_message(message)

    async def _copy_stderr(self, process: asyncio.subprocess.Process) -> None:
        """Put what the process complains about into the log, line by line."""
        assert process.stderr is not None, "it was started with a pipe"
        rest = b""
        while chunk := await process.stderr.read(_STDERR_CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(b"\n")
            rest = rest[-_STDERR_CHUNK_BYTES:]
            for line in lines:
                self._log_stderr(line)
        self._log_stderr(rest)

    def _log_stderr(self, line: bytes) -> None:
        text = line[:_LONGEST_LOG_LINE].decode(errors="replace").rstrip()
        if text:
            self._last_stderr_line = text
            _LOG.warning("%s: %s", self._name, text)

    async def _wait_or_kill(
        self, process: asyncio.subprocess.Process, grace_seconds: float
    ) -> None:
        try:
            await asyncio.wait_for(process.wait(), grace_seconds)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()

    def _reason(self, returncode: int | None) -> str:
        if self._failure is not None:
            return self._failure["message"]
        assert returncode is not None, "the process was waited for"
        how = f"ended by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
        said = f": {self._last_stderr_line[:_LONGEST_REASON]}" if self._last_stderr_line else ""
        return f"the model's process is gone ({how}){said}"
