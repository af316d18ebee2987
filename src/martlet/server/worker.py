"""The process of one model: ``python -m martlet.server.worker SOCKET``, started by the server.

Messages come and go as lines of JSON on an inherited socket. One thread reads them, one prepares
jobs, one writes; the main thread does nothing but steps of the model. The process ends when the
server does, however that ends, and with a non-zero code when a step fails in a way that may have
left the device or the memory in any state: the server then starts another.
"""

from __future__ import annotations

import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from martlet.errors import MartletError
from martlet.server.channel import Channel
from martlet.server.messages import ConfigureMessage, error_details

if TYPE_CHECKING:
    from martlet.engine.batch import Batch
    from martlet.server.jobs import Jobs
    from martlet.server.report import Reporter

__all__ = ["main"]

_SERVER_GONE = 0
_BROKEN = 70  # EX_SOFTWARE of sysexits.h
_FLUSH_SECONDS = 2.0
# After so long without work, an old speed says nothing any more.
_QUIET_SECONDS = 5.0
_LONGEST_MESSAGE = 500
_PR_SET_PDEATHSIG = 1


def main(argv: Sequence[str]) -> int:
    """Serve one model on the socket with the number ``argv[1]``; the exit code."""
    # A terminal's Ctrl-C is for the server; SIGTERM ends the process as it always does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_the_server()
    # Whoever notices that the server is gone ends the process, in the middle of whatever runs.
    connection = socket.socket(fileno=int(argv[1]))
    channel = Channel(connection, on_lost=lambda: os._exit(_SERVER_GONE))
    return _Worker(channel).run()


class _Worker:
    """Loads, steps, and reports."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._configuration: queue.SimpleQueue[ConfigureMessage] = queue.SimpleQueue()
        self._jobs: Jobs | None = None
        self._wake = threading.Event()

    def run(self) -> int:
        """Do everything; the exit code."""
        threading.Thread(target=self._read, name="from server", daemon=True).start()
        # Takes seconds, and is done while this process waits for its turn to load.
        from martlet.api import load
        from martlet.server.jobs import Jobs
        from martlet.server.report import Reporter
        from martlet.server.warm_up import warm_up

        configuration = self._configuration.get()
        start = time.perf_counter()
        try:
            model = load(configuration["folder"], **configuration["options"])
            batch = model.batch()
            tokens_per_second = warm_up(model, batch)
        except MartletError as error:
            self._channel.send({"op": "failure", "error": error_details(error)})
            self._channel.flush(_FLUSH_SECONDS)
            return error.exit_code
        self._jobs = Jobs(model, batch, self._channel.send, self._wake.set)
        reporter = Reporter(model, batch)
        self._channel.send(reporter.hello(time.perf_counter() - start, tokens_per_second))
        try:
            self._work(self._jobs, batch, reporter)
        except Exception as error:
            _print_without_texts(error)
            self._jobs.fail_all()
            self._channel.flush(_FLUSH_SECONDS)
            return _BROKEN

    def _read(self) -> None:
        """Take what the server says; in a thread of its own, so that nothing is noticed late."""
        for message in self._channel.messages():
            if message["op"] == "configure":
                self._configuration.put(message)  # type: ignore[arg-type]
                continue
            assert self._jobs is not None, "the server sends jobs after hello alone"
            if message["op"] == "submit":
                self._jobs.submit(message)  # type: ignore[arg-type]
            else:
                self._jobs.cancel(message["id"])

    def _work(self, jobs: Jobs, batch: Batch, reporter: Reporter) -> NoReturn:
        """Step while there is work, wait while there is none."""
        while True:
            self._wake.clear()
            did_embed = jobs.run_between_steps()
            if batch.step() or did_embed:
                if reporter.is_due():
                    self._channel.send(reporter.status())
                continue
            self._channel.send(reporter.status())
            if not self._wake.wait(_QUIET_SECONDS):
                reporter.restart_clock()
                self._channel.send(reporter.status())
                self._wake.wait()
            reporter.restart_clock()


def _die_with_the_server() -> None:
    """Have the kernel end this process if the server is killed, even while nothing is read."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _print_without_texts(error: Exception) -> None:
    """Say where and why, on stderr, in no more than names and the messages that hold no prompt."""
    for entry in traceback.format_tb(error.__traceback__):
        sys.stderr.write(entry)
    message = type(error).__name__
    # These speak of memory, files and devices; a KeyError or ValueError may quote what was read.
    if isinstance(error, MartletError | RuntimeError | MemoryError | OSError) and str(error):
        message += ": " + " ".join(str(error).split())[:_LONGEST_MESSAGE]
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    code = main(sys.argv)
    # Not sys.exit: threads that still compute or hold memory shall not be waited for.
    os._exit(code)
