"""Dialogues as files: a JSON list of messages, as the API and other programs have them."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from martlet.checkpoint.staging import disk_errors
from martlet.errors import UsageError

__all__ = ["Messages", "parse_messages", "read_messages", "write_messages"]

Messages = list[dict[str, str]]

_LARGEST_BYTES = 64 << 20
_ROLES = ("system", "user", "assistant")


def read_messages(path: Path) -> Messages:
    """The messages of a file.

    Raises:
        UsageError: it cannot be read, or holds something else; says what.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path}: cannot be read: {reason}; give another file") from error
    return parse_messages(data, str(path))


def parse_messages(data: bytes, where: str) -> Messages:
    """The messages of a JSON text; only the first may be the system's.

    Raises:
        UsageError: it holds something else; ``where`` is what the message calls it.
    """
    if len(data) > _LARGEST_BYTES:
        raise UsageError(
            f"{where}: more than {_LARGEST_BYTES:,} bytes, which no dialogue has; give another"
        )
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{where}: is not JSON: {error}; it must hold a list of messages"
        ) from error
    if not isinstance(value, list) or not value:
        raise UsageError(
            f"{where}: must hold a JSON list of at least one message, "
            'each {"role": "user" or "assistant", "content": text}'
        )
    for number, message in enumerate(value, start=1):
        _check(message, f"{where}: message {number}", is_first=number == 1)
    return [{"role": m["role"], "content": m["content"]} for m in value]


def write_messages(path: Path, messages: Sequence[dict[str, str]]) -> None:
    """Write a file whole or not at all; one of that name is replaced.

    Raises:
        UsageError: its folder cannot be written.
        DiskFullError: there is no room.
    """
    data = (json.dumps(messages, ensure_ascii=False, indent=2) + "\n").encode(errors="replace")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: its folder does not exist; make it or choose another")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder; give the name of a file")
    with disk_errors(path, len(data)):
        # Readable by its owner alone: a dialogue is private.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


def _check(message: Any, where: str, *, is_first: bool) -> None:
    if not isinstance(message, dict) or not {"role", "content"} <= set(message):
        raise UsageError(f"{where} must be an object with role and content, got {message!r:.60}")
    role, content = message["role"], message["content"]
    if role not in _ROLES:
        raise UsageError(
            f"{where} has the role {role!r:.40}; it must be one of {', '.join(_ROLES)}"
        )
    if role == "system" and not is_first:
        raise UsageError(f"{where} is the system's; only the first message may be")
    if not isinstance(content, str) or not content.strip():
        raise UsageError(f"{where} has no text; its content must be a string that is not empty")
    try:
        content.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{where} has half a character at {error.start}; write the file as UTF-8"
        ) from error
