"""Runs the command line inside the test process, as `martlet ...` would in a shell."""

import io
import sys
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
