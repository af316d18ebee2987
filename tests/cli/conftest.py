"""Runs the command line inside the test process, or as a person would at a terminal."""

import fcntl
import io
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import dataclass

import pytest

from martlet.cli.verbs import run_command


@dataclass(frozen=True)
class Outcome:
    code: int
    stdout: str
    stderr: str


class PipedInput(io.TextIOWrapper):
    """A stdin that is no terminal."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="utf-8")


@pytest.fixture
def martlet(capsys, monkeypatch):
    """Call as ``martlet("write", folder, "text", stdin="...")``."""

    def call(*argv, stdin: str | bytes = b"") -> Outcome:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", PipedInput(raw))
        capsys.readouterr()
        code = run_command([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


class Terminal:
    """A person at a terminal of 80 columns: types, and waits for what is shown."""

    def __init__(self, *arguments, term="dumb", folder=None, env=None):
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "martlet", *map(str, arguments)],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=folder,
            env={**os.environ, "TERM": term, **(env or {})},
            # The terminal that sends SIGINT at Ctrl-C and SIGHUP when it is closed.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text, seconds=60):
        """Read until ``text`` is shown; gives what came before it, which is used up with it."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert select.select([self.master], [], [], max(0, end - time.monotonic()))[0], (
                text,
                self.shown,
            )
            self.read()
        before, _, self.shown = self.shown.partition(text)
        return before

    def read(self):
        """Take what is shown now, or next."""
        self.shown += os.read(self.master, 65536).decode(errors="replace")

    def interrupt_until(self, text):
        """Send SIGINT until ``text`` is shown; one that comes before readline waits is lost."""
        for _ in range(20):
            os.kill(self.process.pid, signal.SIGINT)
            if select.select([self.master], [], [], 1)[0]:
                break
        self.wait_for(text)

    def type(self, text):
        os.write(self.master, text.encode())

    def ask(self, text, expected):
        """Type a line, and give what is shown from then on until the next prompt."""
        self.type(text + "\r")
        before = self.wait_for(expected)
        return before + expected + self.wait_for("> ")

    def leave(self):
        """Type Ctrl-D; the exit code."""
        self.type("\x04")
        return self.end()

    def end(self):
        """Wait until it has ended; the exit code."""
        try:
            while select.select([self.master], [], [], 30)[0]:
                self.read()
        except OSError:
            pass  # nobody is at the other end any more
        return self.process.wait(timeout=30)


@pytest.fixture
def terminal(tmp_path):
    """Start as ``terminal("chat", folder)``; what is still there at the end is killed."""
    started = []

    def start(*arguments, env=None, **options):
        env = {"XDG_STATE_HOME": str(tmp_path / "state"), **(env or {})}
        started.append(Terminal(*arguments, env=env, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()
        os.close(one.master)
