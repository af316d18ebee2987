"""A folder that appears at its destination complete or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from martlet.errors import DiskFullError, UsageError

__all__ = ["disk_errors", "require_space", "staged_folder", "sync_path"]

_SUFFIX = ".partial"
_LOCK_NAME = ".writing"
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_FOLDER = (
    errno.EACCES,
    errno.EEXIST,
    errno.ENAMETOOLONG,
    errno.ENOTDIR,
    errno.EPERM,
    errno.EROFS,
)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def staged_folder(destination: Path) -> Iterator[Path]:
    """A temporary sibling of ``destination`` that takes its place when the body succeeds.

    On any error, Ctrl-C included, it is removed and the destination is as before. What a killed
    process left behind is removed by the next one that writes to the same destination; a lock,
    which dies with its process, tells a dead leftover from a writer at work.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(destination)
    # Named before it is made: Ctrl-C must find it in charge of someone at every moment.
    staging = destination.parent / f".{destination.name}.{secrets.token_hex(8)}{_SUFFIX}"
    try:
        staging.mkdir(mode=0o700)
        with (staging / _LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield staging
            (staging / _LOCK_NAME).unlink()
            staging.chmod(0o777 & ~_umask())
            sync_path(staging)
            _move_into_place(staging, destination)
            sync_path(destination.parent)
    finally:
        # Whatever stands here now is a failed attempt, or the older folder that was replaced.
        shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turn "no space left" and its relatives into DiskFullError.

    Raises:
        DiskFullError: disk full, quota exceeded or file size limit reached in the body.
        UsageError: the folder cannot be written at all.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise DiskFullError(
                f"{path}: {error.strerror} while writing {needed_bytes:,} bytes, "
                f"{_free_bytes(path):,} are free; make room or choose another folder"
            ) from error
        if error.errno in _NO_FOLDER:
            raise UsageError(
                f"{path}: cannot be written: {error.strerror}; choose another folder"
            ) from error
        raise


def require_space(path: Path, needed_bytes: int) -> None:
    """Check the free space of a filesystem before the first byte.

    Raises:
        DiskFullError: less than ``needed_bytes`` are free where ``path`` lies.
    """
    free = _free_bytes(path)
    if needed_bytes > free:
        raise DiskFullError(
            f"{path}: {needed_bytes:,} bytes are needed, {free:,} are free; "
            f"make room or choose another folder"
        )


def sync_path(path: Path) -> None:
    """Wait until a file or a folder's list of names is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_bytes(path: Path) -> int:
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove_leftovers(destination: Path) -> None:
    for leftover in destination.parent.glob(f".{_escape(destination.name)}.*{_SUFFIX}"):
        with contextlib.suppress(OSError), (leftover / _LOCK_NAME).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(leftover, ignore_errors=True)


def _escape(name: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)


def _move_into_place(staging: Path, destination: Path) -> None:
    """Rename; an existing destination changes places with the new folder in one step."""
    if not destination.exists():
        staging.rename(destination)
        return
    rename = ctypes.CDLL(None, use_errno=True).renameat2
    paths = (os.fsencode(staging), os.fsencode(destination))
    if rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0:
        return
    # A filesystem that cannot exchange (some network mounts): two renames, undone on failure.
    aside = staging.with_name(staging.name + ".old")
    destination.rename(aside)
    try:
        staging.rename(destination)
    except BaseException:
        aside.rename(destination)
        raise
    shutil.rmtree(aside, ignore_errors=True)
