"""What the process needs before a verb runs: Ctrl-C at any moment, standard streams that exist."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

__all__ = [
    "INTERRUPTED",
    "ending_quietly",
    "ignore_interrupts",
    "open_standard_streams",
    "take_interrupts",
]

INTERRUPTED = 130
_SIGNALLED = 128  # a shell's exit code for a signal is this and its number
_IMPORT_MACHINERY = ("importlib", "importlib._bootstrap", "importlib._bootstrap_external")
_ROOM = "martlet.cli."
_CLEAR_LINE_AND_SHOW_CURSOR = b"\r\x1b[2K\x1b[?25h"


def take_interrupts() -> None:
    """Make Ctrl-C end the process at once while the command line imports what it needs.

    A KeyboardInterrupt in the middle of an import often gets lost, since the import machinery and
    extension modules have places that cannot raise; and nothing is at work yet that needs cleaning
    up. At any other time, an import in the middle of the work included, it is the usual exception.
    Where the process was started with SIGINT ignored, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_interrupt)


@contextlib.contextmanager
def ending_quietly() -> Iterator[None]:
    """Let SIGTERM, and a terminal that is closed, end the body by SystemExit.

    So the terminal is given back as it was found, which a process that dies of a signal while a
    line is edited or progress is shown does not do.
    """
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in numbers:
            if before[number] is signal.SIG_DFL:
                signal.signal(number, _on_termination)
        yield
    finally:
        for number in numbers:
            if before[number] is signal.SIG_DFL:
                signal.signal(number, signal.SIG_DFL)


def ignore_interrupts() -> None:
    """No Ctrl-C from here on: the work is done, and the interpreter is about to shut down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def open_standard_streams() -> None:
    """Give the process a stdin, stdout and stderr that it was started without.

    Otherwise the next file that is opened would get the number of one of them, and whatever writes
    to stderr would write into that file.
    """
    for number, mode in enumerate((os.O_RDONLY, os.O_WRONLY, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - lives as long as the process


def _on_interrupt(number: int, frame: FrameType | None) -> None:
    if not _is_starting(frame):
        raise KeyboardInterrupt
    _leave_at_once(INTERRUPTED, b"interrupted\n")


def _on_termination(number: int, frame: FrameType | None) -> None:
    if not _is_starting(frame):
        raise SystemExit(_SIGNALLED + number)
    _leave_at_once(_SIGNALLED + number, b"")


def _leave_at_once(code: int, message: bytes) -> None:
    with contextlib.suppress(OSError):
        prefix = _CLEAR_LINE_AND_SHOW_CURSOR if os.isatty(2) else b""
        os.write(2, prefix + message)
    os._exit(code)


def _is_starting(frame: FrameType | None) -> bool:
    """Whether the outermost import on the stack is one that a module of this room asked for."""
    importer = None
    is_import = False
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name in _IMPORT_MACHINERY:
            is_import = True
        elif is_import:
            importer, is_import = name, False
        frame = frame.f_back
    return importer is not None and f"{importer}.".startswith(_ROOM)
