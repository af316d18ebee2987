"""Requests to the hub: redirects, proxies, and a token that only the hub itself ever sees.

This is plain HTTP of the standard library: the library for the hub changed its own client between
two versions, and would send a list of what is installed along with every request.
"""

from __future__ import annotations

import http.client
import re
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping
from email.message import Message
from types import TracebackType
from urllib.parse import quote, urljoin, urlsplit

from martlet import __version__
from martlet.errors import DownloadError
from martlet.hub.advice import mirror_advice
from martlet.hub.settings import HubSettings, find_token

__all__ = ["Answer", "Connection"]

# Time-outs and errors of TLS are among the OSErrors.
_NETWORK_ERRORS = (OSError, http.client.HTTPException)

_REDIRECTS = (301, 302, 303, 307, 308)
_MAX_REDIRECTS = 10
_MAX_SECONDS_TO_WAIT = 300.0
_HASH = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Answer:
    """What a server sent, its body still to be read.

    Attributes:
        status: the number of the answer after all redirects.
        other_host: where it came from, if that is not the hub; else None.
        headers: those of the last answer.
        etag: the hash of the whole file by the hub's own word, None where it gave none.
        commit: the revision that the hub answered for.
        error_code: the hub's word for what is wrong, as "GatedRepo".
        content_length: bytes of the body, None where they are not told.
    """

    def __init__(
        self, response: http.client.HTTPResponse, url: str, said: Message, *, is_home: bool
    ) -> None:
        self._response = response
        self._url = url
        self.other_host = None if is_home else urlsplit(url).netloc
        self.status = response.status
        self.headers: Message = response.headers
        self.etag = _hash(said.get("X-Linked-Etag") or said.get("ETag"))
        self.commit = _hash(said.get("X-Repo-Commit"))
        self.error_code = str(said.get("X-Error-Code", ""))
        length = str(self.headers.get("Content-Length", ""))
        self.content_length = int(length) if length.isdecimal() else None

    def __enter__(self) -> Answer:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._response.close()

    def read(self, num_bytes: int) -> bytes:
        """What has come, at most so much; empty at the end.

        Raises:
            DownloadError: the connection broke.
        """
        try:
            return self._response.read1(num_bytes)
        except _NETWORK_ERRORS as error:
            raise _network_failure(self._url, error) from error

    def retry_after_seconds(self) -> float | None:
        """When the server wants to be asked again."""
        text = str(self.headers.get("Retry-After", ""))
        return min(float(text), _MAX_SECONDS_TO_WAIT) if text.isdecimal() else None


class Connection:
    """The hub of these settings. May be used by several threads."""

    def __init__(self, settings: HubSettings) -> None:
        assert not settings.is_offline, "offline means that nobody asks for a connection"
        self.settings = settings
        self._token = find_token()
        self._opener: urllib.request.OpenerDirector | None = None
        self._lock = threading.Lock()

    @property
    def has_token(self) -> bool:
        """Whether requests to the hub carry a token."""
        return self._token is not None

    def get(self, path: str, *, first_byte: int = 0) -> Answer:
        """The answer of the hub, from this byte on where it can do that.

        Raises:
            DownloadError: no answer; ``may_pass`` where a further request may get one.
        """
        url = self.settings.endpoint + path
        home = _origin(url)
        headers = {"User-Agent": f"martlet/{__version__}", "Accept-Encoding": "identity"}
        if first_byte:
            headers["Range"] = f"bytes={first_byte}-"
        said = Message()
        for _ in range(_MAX_REDIRECTS + 1):
            is_home = _origin(url) == home
            # Another host never learns the token, nor is it asked what the file's hash is.
            authorization = (
                {"Authorization": f"Bearer {self._token}"} if is_home and self._token else {}
            )
            response = self._open(url, {**headers, **authorization})
            if is_home:
                _add(said, response.headers)
            location = response.headers.get("Location")
            if response.status not in _REDIRECTS or not location:
                return Answer(response, url, said, is_home=is_home)
            response.close()
            url = self._redirected(url, str(location))
        raise DownloadError(
            f"{self.settings.endpoint}{path}: more than {_MAX_REDIRECTS} redirects; "
            "check HF_ENDPOINT"
        )

    def _redirected(self, url: str, location: str) -> str:
        target = quote(urljoin(url, location), safe=":/?#[]@!$&'()*+,;=%~-._")
        is_safe = urlsplit(target).scheme == "https" or (
            urlsplit(target).scheme == "http" and urlsplit(url).scheme == "http"
        )
        if not is_safe:
            raise DownloadError(
                f"{url}: redirects to {target!r:.120}, which is no https address; check HF_ENDPOINT"
            )
        return target

    def _open(self, url: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        request = urllib.request.Request(url, headers=dict(headers))
        try:
            response = self._open_with_proxies(request)
        except _NETWORK_ERRORS as error:
            raise _network_failure(url, error) from error
        assert isinstance(response, http.client.HTTPResponse), "only HTTP was asked for"
        return response

    def _open_with_proxies(self, request: urllib.request.Request) -> object:
        with self._lock:
            if self._opener is None:
                self._opener = _make_opener()
        return self._opener.open(request, timeout=self.settings.timeout_seconds)


def _network_failure(url: str, error: BaseException) -> DownloadError:
    """The error to raise where a connection failed or broke."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    host = urlsplit(url).netloc
    if isinstance(reason, ssl.SSLCertVerificationError):
        return DownloadError(
            f"{host} shows a certificate that is not valid: {reason.verify_message}; "
            "check the clock, or name your own authority's file in SSL_CERT_FILE"
        )
    if isinstance(reason, TimeoutError):
        what = "sent nothing for longer than HF_HUB_DOWNLOAD_TIMEOUT allows"
    else:
        text = str(getattr(reason, "strerror", None) or reason) or type(reason).__name__
        what = f"cannot be reached: {text}"
    return DownloadError(f"{host} {what}; {mirror_advice()}", may_pass=True)


def _make_opener() -> urllib.request.OpenerDirector:
    """HTTP and HTTPS with the proxies of the environment, and nothing else: no file, no FTP."""
    opener = urllib.request.OpenerDirector()
    opener.addheaders = []
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
    ):
        opener.add_handler(handler)
    return opener


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise DownloadError(f"{url!r:.120} is no address; check HF_ENDPOINT") from error
    return parts.scheme, parts.hostname or "", port or _DEFAULT_PORTS.get(parts.scheme)


def _add(said: Message, headers: Message) -> None:
    """Keep what the hub itself says; the first word counts, as the file's own is told first."""
    for name in ("X-Linked-Etag", "X-Repo-Commit", "X-Error-Code", "ETag"):
        if name in headers and name not in said:
            said[name] = str(headers[name])


def _hash(value: object) -> str | None:
    """The hash in a header, None where it holds something else."""
    text = str(value or "").removeprefix("W/").strip('"').lower()
    return text if _HASH.fullmatch(text) else None
