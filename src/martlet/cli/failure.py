"""What a user sees of a failure: one line on stderr and an exit code."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence

import click

from martlet.cli.process import INTERRUPTED
from martlet.errors import CapacityError, DiskFullError, MartletError

__all__ = ["describe", "is_out_of_memory", "wants_traceback"]

_USAGE = 2
_UNEXPECTED = 1


def describe(error: BaseException) -> tuple[str, int]:
    """The line to show and the exit code for an error that reached the top."""
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return "interrupted", INTERRUPTED
    if isinstance(error, MartletError):
        return _line(str(error)), error.exit_code
    if isinstance(error, click.ClickException):
        return _line(_usage_message(error)), _USAGE
    if is_out_of_memory(error):
        return (
            _line(
                f"out of memory: {error or 'an allocation failed'}; "
                "close other programs, use --quantize int4 or a smaller model"
            ),
            CapacityError.exit_code,
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        where = f" while writing {error.filename}" if error.filename else ""
        return _line(f"no space left on the disk{where}; free some"), DiskFullError.exit_code
    summary = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return _line(f"{summary}; run `martlet --debug ...` for the traceback"), _UNEXPECTED


def wants_traceback(argv: Sequence[str], error: BaseException) -> bool:
    """Whether ``martlet --debug`` was called and the error is not the user's own doing."""
    expected = (KeyboardInterrupt, click.Abort, click.ClickException)
    return "--debug" in argv[:1] and not isinstance(error, expected)


def _line(message: str) -> str:
    return "error: " + " ".join(message.split())


def _usage_message(error: click.ClickException) -> str:
    message = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if context is None:
        return message
    return f"{message}; see `{context.command_path} --help`"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, in main memory or on a card."""
    if isinstance(error, MemoryError):
        return True
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    # The CPU allocator of torch has no error class of its own.
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    )
