"""The cache of the Hugging Face hub on disk, as all its programs lay it out.

``models--ORG--NAME/blobs/ETAG`` are the bytes of files, ``snapshots/COMMIT/FILE`` links to them,
``refs/BRANCH`` the commit that a branch stood at, and ``.locks/models--ORG--NAME/ETAG.lock`` what
a program holds while it fetches a file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from martlet.checkpoint.staging import sync_path

__all__ = ["CachedRepo", "repo_of_folder"]

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHORT_COMMIT = re.compile(r"[0-9a-f]{7,39}")
_PREFIX = "models--"
_SECONDS_BETWEEN_ATTEMPTS = 0.1
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTSUP)


class CachedRepo:
    """Where the files of one repository lie, or will lie."""

    def __init__(self, cache_dir: Path, repo: str) -> None:
        self.repo = repo
        name = _PREFIX + repo.replace("/", "--")
        self.folder = cache_dir / name
        self._locks = cache_dir / ".locks" / name

    def blob(self, etag: str) -> Path:
        """The bytes of a file."""
        return self.folder / "blobs" / etag

    def incomplete(self, etag: str) -> Path:
        """What has arrived of a file so far."""
        return self.folder / "blobs" / f"{etag}.incomplete"

    def snapshot(self, commit: str) -> Path:
        """The folder that shows a commit."""
        return self.folder / "snapshots" / commit

    def commit_of(self, revision: str) -> str | None:
        """The commit of a branch or tag when it was fetched, or a commit that is here itself.

        A commit may be shortened to what tells it from the others that are here.
        """
        if _COMMIT.fullmatch(revision):
            return revision if self.snapshot(revision).is_dir() else None
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            return self._whole_commit(revision)
        return commit if _COMMIT.fullmatch(commit) else None

    def _whole_commit(self, start: str) -> str | None:
        if not _SHORT_COMMIT.fullmatch(start):
            return None
        found = [path.name for path in self.folder.glob(f"snapshots/{start}*")]
        return found[0] if len(found) == 1 and _COMMIT.fullmatch(found[0]) else None

    def set_commit(self, revision: str, commit: str) -> None:
        """Remember which commit a branch stands at."""
        if revision == commit or self.commit_of(revision) == commit:
            return
        path = self.folder / "refs" / revision
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
        temporary.write_text(commit, encoding="ascii")
        os.replace(temporary, path)

    def link(self, commit: str, name: str, etag: str) -> None:
        """Show a file that has been fetched under its name in a commit."""
        path = self.snapshot(commit) / name
        if path.is_file():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        target = os.path.relpath(self.blob(etag), path.parent)
        temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            temporary.symlink_to(target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # As huggingface_hub does on such file systems: the file itself, and no blob.
            os.replace(self.blob(etag), path)
            return
        os.replace(temporary, path)

    def has_file(self, commit: str, name: str, etag: str, size_bytes: int) -> bool:
        """Whether a file need not be fetched: its blob or, without links, the file is there."""
        for path in (self.blob(etag), self.snapshot(commit) / name):
            with contextlib.suppress(OSError):
                if path.stat().st_size == size_bytes:
                    return True
        return False

    def complete(self, etag: str) -> None:
        """Make what has arrived and was verified the bytes of the file."""
        incomplete = self.incomplete(etag)
        sync_path(incomplete)
        os.replace(incomplete, self.blob(etag))
        sync_path(incomplete.parent)

    @contextlib.contextmanager
    def lock(self, etag: str, wait: Callable[[float], None]) -> Iterator[None]:
        """Hold a file's lock, which other programs that use this cache respect.

        Where somebody holds it, ``wait`` is called with seconds again and again, and may raise to
        give up. A lock dies with its process.
        """
        self._locks.mkdir(parents=True, exist_ok=True)
        path = self._locks / f"{etag}.lock"
        while True:
            with path.open("a") as file:
                if _try_lock(file.fileno()) and _is_at(path, file.fileno()):
                    yield
                    return
            wait(_SECONDS_BETWEEN_ATTEMPTS)


def repo_of_folder(name: str) -> str | None:
    """The repository that a folder of the cache belongs to: "models--a--b" is of "a/b"."""
    parts = name.removeprefix(_PREFIX).split("--")
    return "/".join(parts) if name.startswith(_PREFIX) and len(parts) == 2 else None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the locked file is still the one of that name, and was not removed meanwhile."""
    with contextlib.suppress(OSError):
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    return False
