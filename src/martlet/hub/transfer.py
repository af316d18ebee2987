"""One file from the hub: gone on with where it stopped, hashed while it is written."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

from martlet.checkpoint.staging import disk_errors
from martlet.errors import DownloadError, RepositoryChangedError
from martlet.hub.cache import CachedRepo
from martlet.hub.connection import Answer, Connection
from martlet.hub.listing import Listing, RemoteFile, refusal
from martlet.hub.retries import Retries

__all__ = ["Transfer"]

_PIECE_BYTES = 1 << 20
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")


class Transfer:
    """Fetches one file into the cache.

    Args:
        report: called with the bytes that have come, negative where some had to be dropped.
        check: called often; may raise to give up. What has arrived stays for the next time.
        wait: how to wait some seconds before a further try; may raise to give up.
    """

    def __init__(
        self,
        connection: Connection,
        listing: Listing,
        file: RemoteFile,
        *,
        report: Callable[[int], None],
        check: Callable[[], None],
        wait: Callable[[float], None],
    ) -> None:
        settings = connection.settings
        self._connection = connection
        self._listing = listing
        self._file = file
        self._repo = CachedRepo(settings.cache_dir, listing.hub_id.repo)
        self._report = report
        self._check = check
        self._wait = wait
        self._what = f"{listing.hub_id.repo}/{file.name}"
        self._path = f"/{listing.hub_id.repo}/resolve/{listing.commit}/{quote(file.name)}"
        self._done = 0
        self._digest = _new_digest(file)

    def run(self) -> None:
        """Have the file in the cache, by fetching it if nobody else has.

        Raises:
            RepositoryChangedError: the hub has another file under this name now.
            DownloadError: it cannot be fetched, or what comes is not what the hub has listed.
            DiskFullError: the disk is full.
        """
        file = self._file
        incomplete = self._repo.incomplete(file.etag)
        with (
            disk_errors(incomplete, file.size_bytes),
            self._repo.lock(file.etag, self._wait),
        ):
            if self._repo.has_file(self._listing.commit, file.name, file.etag, file.size_bytes):
                self._report(file.size_bytes)
                return
            incomplete.parent.mkdir(parents=True, exist_ok=True)
            self._fetch(incomplete)
            self._repo.complete(file.etag)

    def _fetch(self, incomplete: Path) -> None:
        """Fill the file with bytes that have the right hash; leave no wrong ones."""
        is_second_time = False
        with incomplete.open("a+b") as output:
            self._take_over(output)
            while True:
                try:
                    self._receive(output)
                except RepositoryChangedError:
                    incomplete.unlink()
                    raise
                if self._digest.hexdigest() == self._file.etag:
                    output.flush()
                    return
                found = self._digest.hexdigest()
                self._start_over(output)
                if is_second_time:
                    incomplete.unlink()
                    raise self._corrupt(found)
                is_second_time = True

    def _take_over(self, output: BinaryIO) -> None:
        """Go on behind what an earlier attempt left; its bytes are hashed first."""
        if os.fstat(output.fileno()).st_size > self._file.size_bytes:
            output.truncate(0)
        output.seek(0)
        while piece := output.read(_PIECE_BYTES):
            self._check()
            self._take(piece)

    def _receive(self, output: BinaryIO) -> None:
        """Request what is missing, again and again where the connection breaks."""
        settings = self._connection.settings
        retries = Retries(settings.tries, settings.first_wait_seconds, self._wait)
        best = self._done
        while self._done < self._file.size_bytes:
            try:
                self._request(output)
            except DownloadError as error:
                # Only more than ever before is progress: a server that ignores ranges and cuts
                # every time would otherwise be asked for ever.
                if self._done > best:
                    best = self._done
                    retries.advanced()
                retries.failed(error)

    def _request(self, output: BinaryIO) -> None:
        with self._connection.get(self._path, first_byte=self._done) as answer:
            self._look_at(answer, output)
            while piece := answer.read(_PIECE_BYTES):
                self._check()
                if self._done + len(piece) > self._file.size_bytes:
                    raise self._wrong_length("more than that")
                output.write(piece)
                self._take(piece)
        if self._done < self._file.size_bytes:
            raise DownloadError(
                f"{self._what}: the connection ended after {self._done:,} of "
                f"{self._file.size_bytes:,} bytes; what has arrived is kept, try again",
                may_pass=True,
            )

    def _look_at(self, answer: Answer, output: BinaryIO) -> None:
        """Check the head of an answer, and drop what we have if it begins anew."""
        if answer.status == 416 and self._done:
            self._start_over(output)
            raise DownloadError(
                f"{self._what}: the server has no bytes from there on; try again", may_pass=True
            )
        if answer.status not in (200, 206):
            raise refusal(answer, self._connection, self._listing.hub_id, self._what)
        is_other = answer.etag is not None and answer.etag != self._file.etag
        if is_other or answer.commit not in (None, self._listing.commit):
            raise RepositoryChangedError(
                f"{self._what} changed on the server while it was fetched; "
                "try again later or use another mirror by HF_ENDPOINT"
            )
        if answer.headers.get("Content-Encoding", "identity") != "identity":
            raise DownloadError(
                f"{self._what}: comes compressed, which was not asked for; check the proxy"
            )
        if answer.status == 200 and self._done:
            self._start_over(output)
        if answer.status == 206:
            self._look_at_range(str(answer.headers.get("Content-Range", "")), output)
        missing = self._file.size_bytes - self._done
        if answer.content_length not in (None, missing):
            raise self._wrong_length(f"{answer.content_length:,} bytes to come for {missing:,}")

    def _look_at_range(self, content_range: str, output: BinaryIO) -> None:
        match = _CONTENT_RANGE.fullmatch(content_range)
        if match is None or int(match[1]) != self._done:
            self._start_over(output)
            raise DownloadError(
                f"{self._what}: the server sent the range {content_range!r:.60}, which was not "
                "asked for; try again or use another mirror by HF_ENDPOINT",
                may_pass=True,
            )
        if match[2] not in ("*", str(self._file.size_bytes)):
            raise self._wrong_length(f"{match[2]} bytes")

    def _take(self, piece: bytes) -> None:
        self._digest.update(piece)
        self._done += len(piece)
        self._report(len(piece))

    def _start_over(self, output: BinaryIO) -> None:
        output.seek(0)
        output.truncate()
        self._report(-self._done)
        self._done = 0
        self._digest = _new_digest(self._file)

    def _wrong_length(self, what: str) -> DownloadError:
        return DownloadError(
            f"{self._what}: the hub lists {self._file.size_bytes:,} bytes, the server has {what}; "
            "try again later or use another mirror by HF_ENDPOINT"
        )

    def _corrupt(self, found: str) -> DownloadError:
        file = self._file
        kind = "sha256" if len(file.etag) == 64 else "git sha1"
        return DownloadError(
            f"{self._what}: bytes 0-{file.size_bytes - 1:,} came twice with the wrong hash: {kind} "
            f"is {found}, the hub lists {file.etag}; nothing of the file was kept, try again later "
            "or use another mirror by HF_ENDPOINT"
        )


def _new_digest(file: RemoteFile) -> hashlib._Hash:
    """What the hub hashes: the bytes, or for a small file what git makes a blob of."""
    if len(file.etag) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % file.size_bytes, usedforsecurity=False)
