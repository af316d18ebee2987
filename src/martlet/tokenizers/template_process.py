"""A chat template in a process of its own, with bounds on what it takes."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from martlet.errors import ModelFileError, UnavailableError, UsageError
from martlet.tokenizers.template_child import CPU_SECONDS, MAX_OUTPUT_CHARACTERS

__all__ = ["MAX_SOURCE_CHARACTERS", "TemplateFacts", "TemplateProcess"]

MAX_SOURCE_CHARACTERS = 1 << 18
"""Templates of today's models have up to 20,000."""

_CHILD = Path(__file__).with_name("template_child.py")
# The child bounds the time that it computes; this is for one that a busy machine does not let run.
_TIMEOUT_SECONDS = 20.0
_MAX_ANSWER_BYTES = 4 * MAX_OUTPUT_CHARACTERS + 1024
_READ_BYTES = 1 << 16
# What Python itself, and the date of today, depend on.
_ENVIRONMENT = ("TZ", "LANG", "LC_ALL", "LD_LIBRARY_PATH")


class TemplateFacts(NamedTuple):
    """The variables that a template reads, and the text that stands in it."""

    variables: frozenset[str]
    literals: tuple[str, ...]


class _BrokeOffError(Exception):
    """The child broke off; the message says why."""


class TemplateProcess:
    """Renders one template. The child starts with the first text, and again if it had to be ended.

    Args:
        source: the template.
        name: the model's, for messages.

    Raises:
        ModelFileError: the source is too long to be a template.
    """

    def __init__(self, source: str, name: str) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ModelFileError(
                f"the chat template of {name} has {len(source):,} characters, more than the "
                f"{MAX_SOURCE_CHARACTERS:,} that are read; fetch the model again"
            )
        self._source = source
        self._name = name
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._facts: TemplateFacts | None = None

    def facts(self) -> TemplateFacts:
        """What is known of the template without any text.

        Raises:
            ModelFileError: it is no valid template.
        """
        if self._facts is None:
            with self._lock:
                self._ready()
        assert self._facts is not None
        return self._facts

    def render(self, variables: Mapping[str, Any]) -> str:
        """The text that it makes of some variables.

        Raises:
            UsageError: the template refuses them; has its words.
            ModelFileError: it fails, or takes too much time or memory.
            UnavailableError: no process can be started.
        """
        with self._lock:
            answer = self._ask(self._ready(), variables)
        if "refused" in answer:
            raise UsageError(
                f"the chat template of {self._name} refuses these messages: {answer['refused']}"
            )
        text = answer["text"]
        assert isinstance(text, str)
        return text

    def _ready(self) -> subprocess.Popen[bytes]:
        """The child, its template compiled."""
        if self._child is None:
            self._child = _start()
            weakref.finalize(self, _end, self._child)
            facts = self._ask(self._child, {"source": self._source})
            self._facts = TemplateFacts(frozenset(facts["variables"]), tuple(facts["literals"]))
        return self._child

    def _ask(self, child: subprocess.Popen[bytes], request: Mapping[str, Any]) -> dict[str, Any]:
        try:
            answer = _exchange(child, json.dumps(request).encode())
            if "error" not in answer:
                return answer
            problem = answer["error"]
        except _BrokeOffError as failure:
            problem = str(failure)
        # What is left of a child that failed is not relied on.
        self._child = None
        _end(child)
        raise ModelFileError(
            f"the chat template of {self._name} cannot be used: {problem}; fetch the model again, "
            "or ask it to write"
        )


def _start() -> subprocess.Popen[bytes]:
    packages = {_folder_of(name) for name in ("jinja2", "markupsafe")}
    command = [sys.executable, "-I", "-S", str(_CHILD), *sorted(packages)]
    # No tokens, keys and paths of the user's: what is not there cannot be shown.
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
    except OSError as error:
        raise UnavailableError(
            f"the process for chat templates cannot be started: {error}; ask the model to write, "
            "or end other programs"
        ) from None


def _folder_of(package: str) -> str:
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise ModelFileError(
            f"{package} is not installed, without which there are no chat templates; "
            "install Martlet again"
        )
    return str(Path(spec.origin).parent.parent)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Stop a child wherever it is."""
    child.kill()
    for pipe in (child.stdin, child.stdout):
        assert pipe is not None
        with contextlib.suppress(OSError):
            pipe.close()
    child.wait()


def _exchange(child: subprocess.Popen[bytes], data: bytes) -> dict[str, Any]:
    """The answer of the child.

    Raises:
        _BrokeOffError: it ended, or did not answer in time.
    """
    assert child.stdin is not None and child.stdout is not None
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    try:
        child.stdin.write(b"%d\n" % len(data) + data)
        child.stdin.flush()
    except OSError:
        raise _BrokeOffError(_how_it_ended(child)) from None
    received = b""
    while b"\n" not in received:
        received += _more(child, deadline)
    header, _, rest = received.partition(b"\n")
    pieces, missing = [rest], int(header) - len(rest)
    if int(header) > _MAX_ANSWER_BYTES:
        raise _BrokeOffError(f"its text has {int(header):,} bytes")
    while missing > 0:
        pieces.append(_more(child, deadline))
        missing -= len(pieces[-1])
    answer: dict[str, Any] = json.loads(b"".join(pieces))
    return answer


def _more(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert child.stdout is not None
    left_seconds = deadline - time.monotonic()
    poller = select.poll()
    poller.register(child.stdout, select.POLLIN)
    if left_seconds <= 0 or not poller.poll(1000 * left_seconds):
        raise _BrokeOffError(f"it did not answer within {_TIMEOUT_SECONDS:g} s")
    data = os.read(child.stdout.fileno(), _READ_BYTES)
    if not data:
        raise _BrokeOffError(_how_it_ended(child))
    return data


def _how_it_ended(child: subprocess.Popen[bytes]) -> str:
    code = child.wait(_TIMEOUT_SECONDS)
    if code == -signal.SIGPROF:
        return f"it takes more than {CPU_SECONDS:g} s"
    return f"its process ended with code {code}"
