"""A hub on this machine: lists of files, small files itself, large ones from another host."""

import hashlib
import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

LARGE_BYTES = 1000


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag_of(content: bytes) -> str:
    is_large = len(content) >= LARGE_BYTES
    return hashlib.sha256(content).hexdigest() if is_large else git_sha1(content)


@dataclass
class Repository:
    """Files by name; ``commit`` is what branch "main" stands at."""

    files: dict[str, bytes]
    commit: str = "1" * 40
    tags: dict[str, str] = field(default_factory=dict)
    needs_token: str | None = None

    def listing(self) -> dict:
        return {
            "id": "ignored",
            "sha": self.commit,
            "siblings": [self._sibling(name, content) for name, content in self.files.items()],
        }

    def _sibling(self, name: str, content: bytes) -> dict:
        entry = {"rfilename": name, "size": len(content), "blobId": git_sha1(content)}
        if len(content) >= LARGE_BYTES:
            sha256 = hashlib.sha256(content).hexdigest()
            entry["blobId"] = git_sha1(b"a pointer")
            entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 130}
        return entry


@dataclass(frozen=True)
class Seen:
    """A request that came; ``host`` is "hub" or "cdn"."""

    host: str
    path: str
    token: str | None
    byte_range: str | None


Fault = Callable[["_Handler", bytes], None]


class HubServer:
    """Repositories by name, faults by the name of a file, and what was asked for.

    Each request for a file's bytes takes one fault from its queue, and none means a good answer.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.faults: dict[str, deque[Fault]] = defaultdict(deque)
        self.listing_faults: deque[Fault] = deque()
        self.seen: list[Seen] = []
        self._servers = []
        for host in ("hub", "cdn"):
            server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
            server.daemon_threads = True
            server.hub, server.host = self, host
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            self._servers.append(server)
        # The same machine by another name is another host.
        self.endpoint = f"http://127.0.0.1:{self._servers[0].server_port}"
        self.cdn = f"http://localhost:{self._servers[1].server_port}"

    def add(self, name: str, files: dict[str, bytes], **options) -> Repository:
        self.repositories[name] = Repository(dict(files), **options)
        return self.repositories[name]

    def file_requests(self, name: str) -> list[Seen]:
        """Requests for a file's bytes, those that the hub only sends elsewhere left out."""
        return [
            seen
            for seen in self.seen
            if seen.path.endswith("/" + name)
            and (seen.host == "cdn" or not self._is_large(name))
            and "/api/" not in seen.path
        ]

    def _is_large(self, name: str) -> bool:
        return any(
            len(repository.files.get(name, b"")) >= LARGE_BYTES
            for repository in self.repositories.values()
        )

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub: HubServer = self.server.hub
        token = self.headers.get("Authorization")
        path = unquote(urlsplit(self.path).path)
        hub.seen.append(Seen(self.server.host, path, token, self.headers.get("Range")))
        try:
            if path.startswith("/api/models/"):
                self._list(hub, path.removeprefix("/api/models/"))
            else:
                self._resolve(hub, path.strip("/"))
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def _list(self, hub: HubServer, path: str) -> None:
        name, _, revision = path.partition("/revision/")
        repository = hub.repositories.get(name)
        if hub.listing_faults:
            hub.listing_faults.popleft()(self, b"")
        elif repository is None:
            self.answer(401, headers={"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", repository.commit, *repository.tags):
            self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            self.answer(200, json.dumps(repository.listing()).encode())

    def _resolve(self, hub: HubServer, path: str) -> None:
        organisation, model, _, commit, name = path.split("/", 4)
        repository = hub.repositories[f"{organisation}/{model}"]
        content = repository.files.get(name)
        said = {"X-Repo-Commit": repository.commit if commit == "main" else commit}
        is_gated = repository.needs_token and self.server.host == "hub"
        if is_gated and self.headers.get("Authorization") != f"Bearer {repository.needs_token}":
            self.answer(403, headers={"X-Error-Code": "GatedRepo"})
            return
        if content is None:
            self.answer(404, headers={"X-Error-Code": "EntryNotFound"})
            return
        if self.server.host == "hub" and len(content) >= LARGE_BYTES:
            linked = {"X-Linked-Etag": f'"{etag_of(content)}"', "X-Linked-Size": str(len(content))}
            self.answer(302, headers={**said, **linked, "Location": f"{hub.cdn}/{path}"})
            return
        if self.server.host == "hub":
            said["ETag"] = f'"{etag_of(content)}"'
        if hub.faults[name]:
            hub.faults[name].popleft()(self, content)
        else:
            self.content(content, headers=said)

    def content(self, content: bytes, headers: dict | None = None) -> None:
        """A good answer: the file, or the range of it that was asked for."""
        first = self.first_byte()
        if first is None:
            self.answer(200, content, headers)
        elif first >= len(content):
            self.answer(416, headers={"Content-Range": f"bytes */{len(content)}"})
        else:
            content_range = f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[first:], {**(headers or {}), "Content-Range": content_range})

    def first_byte(self) -> int | None:
        byte_range = self.headers.get("Range")
        return int(byte_range.removeprefix("bytes=").rstrip("-")) if byte_range else None

    def answer(
        self,
        status: int,
        body: bytes = b"",
        headers: dict | None = None,
        *,
        length: int | None = None,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args) -> None:
        """Nothing on the terminal."""


def cut_after(num_bytes: int) -> Fault:
    """The connection ends in the middle of what was promised."""

    def fault(handler, content):
        first = handler.first_byte()
        rest = content[first or 0 :]
        head = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"}
        status, headers = (200, None) if first is None else (206, head)
        handler.answer(status, rest[:num_bytes], headers, length=len(rest))

    return fault


def status(number: int, **headers: str) -> Fault:
    head = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler, content: handler.answer(number, b"no", head)


def corrupt(handler, content):
    """Right length, one wrong bit."""
    wrong = bytearray(content)
    wrong[len(wrong) // 2] ^= 1
    handler.content(bytes(wrong))


def ignore_range(handler, content):
    handler.answer(200, content)


def other_range(handler, content):
    """A range, but from the first byte on."""
    handler.answer(206, content, {"Content-Range": f"bytes 0-{len(content) - 1}/{len(content)}"})


def longer(handler, content):
    handler.answer(200, content + b"and more")


def longer_without_a_length(handler, content):
    handler.send_response(200)
    handler.send_header("Connection", "close")
    handler.end_headers()
    handler.wfile.write(content + b"and more")


def shorter(handler, content):
    handler.answer(200, content[:-10])


def stall(seconds: float) -> Fault:
    def fault(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:100])
        handler.wfile.flush()
        time.sleep(seconds)

    return fault


def redirect(address: str) -> Fault:
    return lambda handler, content: handler.answer(302, headers={"Location": address})


def hold(event: threading.Event) -> Fault:
    """Half of the file, and the rest when the test says so."""

    def fault(handler, content):
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        handler.wfile.flush()
        event.wait(20)
        handler.wfile.write(content[len(content) // 2 :])

    return fault
