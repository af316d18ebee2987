"""What clients are told when something fails: one shape, string codes, honest retry hints."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from martlet.errors import (
    CapacityError,
    ContextLengthError,
    DeviceError,
    MartletError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
    UsageError,
)

__all__ = [
    "ApiError",
    "Failure",
    "describe",
    "failure_response",
    "log_failure",
    "without_folders",
]

_logger = logging.getLogger(__name__)

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES: tuple[tuple[type[MartletError], str], ...] = (
    (ContextLengthError, "context_length_exceeded"),
    (UsageError, "invalid_value"),
    (ModelNotFoundError, "model_not_found"),
    (OverloadedError, "server_overloaded"),
    (UnavailableError, "model_unavailable"),
    (CapacityError, "insufficient_memory"),
)
_LONGEST_RETRY_SECONDS = 120
# Folders of this machine, which are nobody's business; what stands last in a path is kept.
_FOLDERS = re.compile(r"(?<![\w.:/])~?/(?:[^\s/'\":;,]+/)+")
_OLLAMA_PATHS = frozenset(
    f"/api/{name}" for name in ("tags", "chat", "generate", "show", "version", "ps", "embed")
)


class ApiError(MartletError):
    """A request that the server itself refuses, with all that the answer shall say.

    Attributes:
        status: the HTTP status.
        code: a word for programs.
        param: the field that is to blame, if one is.
        headers: beyond those of every answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.headers = dict(headers or {})


@dataclass(frozen=True)
class Failure:
    """An error as a client sees it."""

    status: int
    message: str
    code: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """OpenAI's word for the kind of error."""
        if self.status >= 500:
            return "server_error"
        return _TYPES.get(self.status, "invalid_request_error")

    def to_openai(self) -> dict[str, Any]:
        """The body of the answer, or the last object of a stream."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def to_ollama(self) -> dict[str, Any]:
        """The same for Ollama's clients."""
        return {"error": self.message}


def describe(error: Exception) -> Failure:
    """What a client is told about an error; nothing at all about one that was not foreseen."""
    if isinstance(error, ApiError):
        return Failure(error.status, str(error), error.code, error.param, error.headers)
    if isinstance(error, HTTPException):
        return _of_http_exception(error)
    if isinstance(error, MartletError):
        return _of_martlet_error(error)
    message = "an unexpected error; the server's log has it under this request's x-request-id"
    return Failure(500, message, "internal_error", headers={"x-should-retry": "false"})


def _of_http_exception(error: HTTPException) -> Failure:
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    if error.status_code == 404:
        return Failure(404, "there is nothing at this path; see /openapi.json", "not_found")
    if error.status_code == 405:
        allowed = headers.get("allow", "")
        message = f"this path does not answer that method; it answers {allowed}"
        return Failure(405, message, "method_not_allowed", headers=headers)
    return Failure(error.status_code, str(error.detail), "http_error", headers=headers)


def _of_martlet_error(error: MartletError) -> Failure:
    status = error.http_status
    code = next((code for kind, code in _CODES if isinstance(error, kind)), "model_error")
    message = str(error)
    if status >= 500:
        message = without_folders(message)
    return Failure(status, message, code, headers=_retry_headers(error))


def _retry_headers(error: MartletError) -> dict[str, str]:
    """Clients of OpenAI's retry 429 and 5xx by themselves, which helps only where time does."""
    if isinstance(error, OverloadedError | UnavailableError):
        seconds = error.retry_after_seconds
        if seconds is None:
            return {"x-should-retry": "false"}
        whole_seconds = min(max(1, round(seconds)), _LONGEST_RETRY_SECONDS)
        return {"retry-after": str(whole_seconds), "x-should-retry": "true"}
    if error.http_status < 500:
        return {}
    # Memory and devices may be better off a moment later; wrong numbers will be as wrong again.
    is_passing = isinstance(error, CapacityError | DeviceError)
    return {"x-should-retry": "true" if is_passing else "false"}


def without_folders(message: str) -> str:
    """A message whose paths have lost the folders that lead to them."""
    return _FOLDERS.sub("", message)


def _is_ollama_path(path: str) -> bool:
    """Whether clients of Ollama ask there, which know errors as ``{"error": "..."}``."""
    return path in _OLLAMA_PATHS


async def failure_response(request: Request, error: Exception) -> JSONResponse:
    """The answer for an error that was raised before anything was sent."""
    failure = describe(error)
    is_ollama = _is_ollama_path(request.url.path)
    body = failure.to_ollama() if is_ollama else failure.to_openai()
    return JSONResponse(body, failure.status, headers=failure.headers)


def log_failure(error: Exception, request_id: str) -> None:
    """One line about an error, without anything that the client sent.

    An unforeseen one is named with the code that it passed through; its message may hold a prompt.
    """
    failure = describe(error)
    if isinstance(error, MartletError | HTTPException):
        level = logging.WARNING if failure.status >= 500 else logging.INFO
        _logger.log(level, "%s: %d %s", request_id, failure.status, failure.code)
        return
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{f.name} ({f.filename}:{f.lineno})" for f in reversed(frames))
    _logger.error("%s: %s at %s", request_id, type(error).__name__, places)
