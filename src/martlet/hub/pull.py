"""A model from the hub into the cache: several files at a time, each verified."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from martlet.checkpoint.staging import disk_errors, require_space
from martlet.errors import RepositoryChangedError
from martlet.hub.cache import CachedRepo
from martlet.hub.connection import Connection
from martlet.hub.hub_id import HubId
from martlet.hub.listing import Listing, RemoteFile, read_listing
from martlet.hub.selection import Selection, select_files
from martlet.hub.settings import HubSettings
from martlet.hub.transfer import Transfer

__all__ = ["Announce", "Progress", "PullPlan", "pull"]

Progress = Callable[[int, int, str], None]
"""Called with the bytes that are there, the bytes in all, and the file that is fetched now."""

_SECONDS_BETWEEN_REPORTS = 0.1
_SECONDS_FOR_THREADS_TO_END = 2.0


@dataclass(frozen=True)
class PullPlan:
    """What a pull fetches, known before the first byte of it.

    Attributes:
        commit: the revision of the repository.
        files: all files of the model, those that are in the cache already included.
        left_out: names of the repository's other files.
        total_bytes: of ``files``.
        missing_bytes: what must still come.
        path: the folder, or the GGUF file, that the model will be.
    """

    hub_id: HubId
    commit: str
    files: tuple[RemoteFile, ...]
    left_out: tuple[str, ...]
    total_bytes: int
    missing_bytes: int
    path: Path


Announce = Callable[[PullPlan], None]


class _Stopped(Exception):  # noqa: N818 - not an error: a thread is told to end
    """The pull ends; a thread that meets this leaves what it has for the next time."""


def pull(
    hub_id: HubId,
    settings: HubSettings,
    *,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> PullPlan:
    """Have a model of the hub in the cache as the hub has it now.

    Ctrl-C leaves what has arrived, and the next pull goes on from there. Two pulls of one model at
    a time share the work: each file is fetched by one of them.

    Raises:
        ModelNotFoundError: there is no such repository, revision or GGUF file.
        ModelFileError: it has nothing that Martlet loads.
        DownloadError: it cannot be fetched, or does not verify.
        DiskFullError: there is not enough room; told before the first byte.
        UsageError: the cache cannot be written.
    """
    connection = Connection(settings)
    try:
        return _pull_once(connection, hub_id, progress, announce)
    except RepositoryChangedError:
        # Somebody pushed between the list of files and the files: what is new is as good.
        return _pull_once(connection, hub_id, progress, announce)


def _pull_once(
    connection: Connection, hub_id: HubId, progress: Progress | None, announce: Announce | None
) -> PullPlan:
    settings = connection.settings
    repo = CachedRepo(settings.cache_dir, hub_id.repo)
    listing = read_listing(connection, hub_id)
    selection = select_files([file.name for file in listing.files], hub_id)
    plan = _plan(repo, listing, selection)
    if announce is not None:
        announce(plan)
    with disk_errors(repo.folder, plan.missing_bytes):
        if plan.missing_bytes:
            require_space(repo.folder, plan.missing_bytes)
        repo.snapshot(plan.commit).mkdir(parents=True, exist_ok=True)
        _Threads(connection, listing, plan).run(progress or _ignore)
        for file in plan.files:
            repo.link(plan.commit, file.name, file.etag)
        repo.set_commit(hub_id.revision, plan.commit)
    return plan


def _plan(repo: CachedRepo, listing: Listing, selection: Selection) -> PullPlan:
    by_name = {file.name: file for file in listing.files}
    files = tuple(by_name[name] for name in selection.files)
    missing = {
        file.etag: file.size_bytes - _arrived_bytes(repo, file)
        for file in files
        if not repo.has_file(listing.commit, file.name, file.etag, file.size_bytes)
    }
    path = repo.snapshot(listing.commit)
    return PullPlan(
        hub_id=listing.hub_id,
        commit=listing.commit,
        files=files,
        left_out=selection.left_out,
        total_bytes=sum(file.size_bytes for file in files),
        missing_bytes=sum(missing.values()),
        path=path if selection.gguf is None else path / selection.gguf.files[0],
    )


def _arrived_bytes(repo: CachedRepo, file: RemoteFile) -> int:
    with contextlib.suppress(OSError):
        arrived = repo.incomplete(file.etag).stat().st_size
        return arrived if arrived <= file.size_bytes else 0
    return 0


class _Threads:
    """Fetches the files of a plan, some at a time, and tells the caller's thread how far it is."""

    def __init__(self, connection: Connection, listing: Listing, plan: PullPlan) -> None:
        self._connection = connection
        self._listing = listing
        self._plan = plan
        self._waiting: queue.SimpleQueue[RemoteFile] = queue.SimpleQueue()
        for file in _different(plan.files):
            self._waiting.put(file)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._done_bytes = 0
        self._file = ""
        self._errors: list[BaseException] = []

    def run(self, progress: Progress) -> None:
        """Return when every file is there.

        Raises:
            MartletError: the first failure of a file, when the others have stopped.
        """
        count = min(self._connection.settings.connections, len(self._plan.files))
        # Daemons: a thread in a read that nobody answers must not keep the program from ending.
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                while thread.is_alive() and not self._errors:
                    thread.join(_SECONDS_BETWEEN_REPORTS)
                    self._tell(progress)
        finally:
            self._stop.set()
            self._end(threads)
        if self._errors:
            raise self._errors[0]
        self._tell(progress)

    def _tell(self, progress: Progress) -> None:
        with self._lock:
            done_bytes, file = self._done_bytes, self._file
        progress(done_bytes, self._plan.total_bytes, file)

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        until = time.monotonic() + _SECONDS_FOR_THREADS_TO_END
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, until - time.monotonic()))

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                try:
                    file = self._waiting.get_nowait()
                except queue.Empty:
                    return
                self._fetch(file)
        except _Stopped:
            return
        except BaseException as error:
            with self._lock:
                self._errors.append(error)

    def _fetch(self, file: RemoteFile) -> None:
        copies = sum(other.etag == file.etag for other in self._plan.files)

        def report(num_bytes: int) -> None:
            with self._lock:
                self._done_bytes += copies * num_bytes
                self._file = file.name

        def wait(seconds: float) -> None:
            """For a server that has trouble, or for another program that fetches the file."""
            with self._lock:
                self._file = f"waiting for {file.name}"
            if self._stop.wait(seconds):
                raise _Stopped

        Transfer(
            self._connection,
            self._listing,
            file,
            report=report,
            check=self._check,
            wait=wait,
        ).run()

    def _check(self) -> None:
        if self._stop.is_set():
            raise _Stopped


def _different(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Files with the same bytes are fetched once."""
    return list({file.etag: file for file in files}.values())


def _ignore(done_bytes: int, total_bytes: int, file: str) -> None:
    """Nobody wants to know."""
