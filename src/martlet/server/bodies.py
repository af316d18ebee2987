"""Reading what clients send: JSON objects, of bounded size and depth, with honest numbers."""

from __future__ import annotations

import asyncio
import json
import math
import re
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from martlet.server.failures import ApiError

__all__ = ["MAX_DEPTH", "parse_object", "read_object"]

MAX_DEPTH = 64
"""How deep objects and lists of a request may be nested."""

_LARGEST_INT = (1 << 63) - 1
# Above this, parsing takes long enough for other requests to notice.
_PARSED_ASIDE_BYTES = 64 << 10
# An open string goes to the end: each byte is looked at once, whatever was sent.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_ONE_KIND = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


async def read_object(request: Request, max_bytes: int) -> dict[str, Any]:
    """The JSON object of a request's body.

    Raises:
        ApiError: it is compressed, of another type, too large, or no such object.
    """
    _check_headers(request, max_bytes)
    body = await _read_body(request, max_bytes)
    if len(body) <= _PARSED_ASIDE_BYTES:
        return parse_object(body)
    return await asyncio.to_thread(parse_object, body)


def _check_headers(request: Request, max_bytes: int) -> None:
    encoding = request.headers.get("content-encoding", "identity")
    if encoding.strip().lower() != "identity":
        raise ApiError(
            415, "content_encoding_not_supported", "a request's body must not be compressed"
        )
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415,
            "unsupported_media_type",
            f"the body is {media_type[:40]!r}; send it as Content-Type: application/json",
        )
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        _refuse_size(max_bytes)


async def _read_body(request: Request, max_bytes: int) -> bytes:
    body = bytearray()
    try:
        async for piece in request.stream():
            body += piece
            if len(body) > max_bytes:
                _refuse_size(max_bytes)
    except ClientDisconnect:
        raise ApiError(400, "incomplete_body", "the connection ended within the body") from None
    return bytes(body)


def _refuse_size(max_bytes: int) -> NoReturn:
    # What else is sent is not read, so the connection cannot be used again.
    raise ApiError(
        413,
        "request_too_large",
        f"the body has more than {max_bytes:,} bytes, which is the limit; send a shorter text",
        headers={"connection": "close"},
    )


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object of bounded depth without NaN, infinities, huge numbers or half characters.

    Raises:
        ApiError: it is something else.
    """
    _check_depth(body)
    try:
        value = json.loads(
            body.decode(), parse_constant=_refuse_constant, parse_float=_float, parse_int=_int
        )
    except UnicodeDecodeError:
        raise _invalid("is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _invalid(f"is not JSON: {error.msg} at character {error.pos}") from None
    if not isinstance(value, dict):
        raise _invalid(f"is a JSON {type(value).__name__}; it must be an object")
    if _MAYBE_SURROGATE.search(body):
        _check_characters(value)
    return value


def _check_depth(body: bytes) -> None:
    """Brackets that face each other are taken away, level by level, at the speed of memory."""
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    left = _STRING.sub(b"", body).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        left = left.replace(b"[]", b"")
    if left:
        raise _invalid(f"is nested more than {MAX_DEPTH} deep, or its brackets do not match")


def _check_characters(value: dict[str, Any]) -> None:
    """An escape may name half of a character, which no text can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _invalid("has a \\u escape that is half of a surrogate pair") from None


def _refuse_constant(name: str) -> NoReturn:
    raise _invalid(f"has the number {name}, which JSON does not know")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _invalid(f"has the number {digits[:40]}, which is too large")
    return value


def _int(digits: str) -> int:
    if len(digits) > 20 or abs(int(digits)) > _LARGEST_INT:
        raise _invalid(f"has the number {digits[:40]}, which is beyond {_LARGEST_INT}")
    return int(digits)


def _invalid(what: str) -> ApiError:
    return ApiError(400, "invalid_json", f"the body {what}")
