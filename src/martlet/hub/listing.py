"""What files a repository of the hub has at a revision, with their sizes and hashes."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from martlet.errors import DownloadError, MartletError, ModelNotFoundError
from martlet.hub.advice import token_advice
from martlet.hub.connection import Answer, Connection
from martlet.hub.hub_id import HubId, is_file_path
from martlet.hub.retries import Retries

__all__ = ["Listing", "RemoteFile", "read_listing", "refusal"]

_MAX_BYTES = 64 << 20
_PIECE_BYTES = 1 << 20
_MAX_FILE_BYTES = 1 << 50
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LISTING_TRIES = 4


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        name: its path inside the repository.
        etag: its sha256 where it is stored as a large file, else git's sha1 of it as a blob; the
            cache calls its bytes by this.
    """

    name: str
    size_bytes: int
    etag: str


@dataclass(frozen=True)
class Listing:
    """A repository at one commit; ``files`` are those whose names and hashes are sound."""

    hub_id: HubId
    commit: str
    files: tuple[RemoteFile, ...]


def read_listing(connection: Connection, hub_id: HubId) -> Listing:
    """Ask the hub for the commit and the files of a revision.

    Raises:
        ModelNotFoundError: there is no such repository or revision.
        DownloadError: the hub cannot be reached, refuses, or says what makes no sense.
    """
    path = f"/api/models/{hub_id.repo}/revision/{quote(hub_id.revision, safe='')}?blobs=true"
    retries = Retries(
        min(connection.settings.tries, _LISTING_TRIES), connection.settings.first_wait_seconds
    )
    while True:
        try:
            return _parse(hub_id, _fetch(connection, hub_id, path), connection.settings.endpoint)
        except DownloadError as error:
            retries.failed(error)


def _fetch(connection: Connection, hub_id: HubId, path: str) -> bytes:
    with connection.get(path) as answer:
        if answer.status != 200:
            raise refusal(answer, connection, hub_id, str(hub_id))
        pieces: list[bytes] = []
        while piece := answer.read(_PIECE_BYTES):
            pieces.append(piece)
            if sum(map(len, pieces)) > _MAX_BYTES:
                raise DownloadError(
                    f"{hub_id}: the hub's list of files is longer than {_MAX_BYTES:,} bytes; "
                    "check HF_ENDPOINT"
                )
    body = b"".join(pieces)
    if answer.content_length not in (None, len(body)):
        raise DownloadError(
            f"{connection.settings.endpoint} sent {len(body):,} of {answer.content_length:,} bytes "
            f"of the list of files of {hub_id}; try again",
            may_pass=True,
        )
    return body


def refusal(answer: Answer, connection: Connection, hub_id: HubId, what: str) -> MartletError:
    """The error for an answer that is none of the expected ones; ``what`` was asked for."""
    endpoint = connection.settings.endpoint
    status, code = answer.status, answer.error_code
    if answer.other_host is not None and what != str(hub_id):
        # Where the hub sent us: an address that has run out, say. The hub gives a new one.
        return DownloadError(
            f"{what}: {answer.other_host}, where {endpoint} keeps it, answers {status}; try again "
            "later or use another mirror by HF_ENDPOINT",
            may_pass=True,
            retry_after_seconds=answer.retry_after_seconds(),
        )
    if code == "RevisionNotFound":
        return ModelNotFoundError(
            f"{hub_id.repo} has no revision {hub_id.revision!r} at {endpoint}; "
            "leave @REVISION out, or name a branch, a tag or a commit"
        )
    advice = token_advice(endpoint, hub_id.repo, has_token=connection.has_token)
    if status in (401, 403) and code != "RepoNotFound":
        return DownloadError(f"{what}: {endpoint} answers {status}, access refused; {advice}")
    if code == "RepoNotFound" or (status == 404 and what == str(hub_id)):
        return ModelNotFoundError(
            f"{endpoint} knows no model {hub_id.repo}, or it is private; check the spelling; "
            f"for a private one: {advice}"
        )
    if status == 404:
        return DownloadError(
            f"{what}: {endpoint} lists the file, but answers 404; try again later or use "
            "another mirror by HF_ENDPOINT"
        )
    if status == 429 or status >= 500:
        wait = answer.retry_after_seconds()
        reason = "too many requests" if status == 429 else "it has trouble"
        return DownloadError(
            f"{what}: {endpoint} answers {status}, {reason}; try again "
            + (f"in {wait:.0f} s" if wait else "later")
            + ", or use another mirror by HF_ENDPOINT",
            may_pass=True,
            retry_after_seconds=wait,
        )
    return DownloadError(f"{what}: {endpoint} answers {status}; check HF_ENDPOINT")


def _parse(hub_id: HubId, body: bytes, endpoint: str) -> Listing:
    try:
        raw = json.loads(body)
        commit, siblings = raw["sha"], raw["siblings"]
        if not isinstance(siblings, list) or not _COMMIT.fullmatch(commit):
            raise TypeError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DownloadError(
            f"{endpoint}: the answer for {hub_id} is no list of a repository's files; "
            "check HF_ENDPOINT, and whether a page of a network's login stands in the way"
        ) from error
    files = (_file(entry) for entry in siblings)
    return Listing(hub_id, commit, tuple(file for file in files if file is not None))


def _file(entry: Any) -> RemoteFile | None:
    """A file of the list; None for a name that leads out, and for one without a hash."""
    if not isinstance(entry, dict) or not is_file_path(entry.get("rfilename")):
        return None
    large = entry.get("lfs")
    if isinstance(large, dict):
        etag, pattern, size = large.get("sha256"), _SHA256, large.get("size", entry.get("size"))
    else:
        etag, pattern, size = entry.get("blobId"), _COMMIT, entry.get("size")
    if not isinstance(etag, str) or not pattern.fullmatch(etag):
        return None
    if type(size) is not int or not 0 <= size <= _MAX_FILE_BYTES:
        return None
    return RemoteFile(entry["rfilename"], size, etag)
