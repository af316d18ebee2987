"""Asks an ASGI application without a network; for what is decided before a model is asked."""

import asyncio
import functools
import json
from dataclasses import dataclass

from martlet.server.app import create_app
from martlet.server.backend import Backend
from martlet.server.settings import ModelSettings, ServerSettings


@dataclass
class Reply:
    status: int
    headers: dict
    body: bytes

    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        return self.json()["error"]["code"]


def settings_with(**changes):
    models = tuple(ModelSettings(name, f"/nowhere/{name}") for name in ("one", "two"))
    return ServerSettings(models, **changes)


@functools.cache
def idle_app(**changes):
    """The application over models whose processes were never started: they are loading."""
    settings = settings_with(**changes)
    return create_app(Backend(settings), settings)


def ask(app, method="GET", path="/v1/models", *, headers=None, body=b"", host="127.0.0.1:8000"):
    """The reply to one request; ``headers`` is a dict or a list of pairs."""
    pairs = list(headers.items() if isinstance(headers, dict) else headers or [])
    if host is not None:
        pairs.append(("host", host))
    if isinstance(body, dict | list):
        body = json.dumps(body).encode()
        pairs.append(("content-type", "application/json"))
    return asyncio.run(_ask(app, method, path, pairs, body))


async def ask_in_loop(app, body, heard):
    """The reply to a completion; ``heard`` is called with each piece of it as it comes."""
    pairs = [("host", "127.0.0.1:8000"), ("content-type", "application/json")]
    return await _ask(app, "POST", "/v1/completions", pairs, json.dumps(body).encode(), heard)


async def _ask(app, method, path, pairs, body, heard=lambda piece: None):
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "scheme": "http",
        "client": ("127.0.0.1", 50000),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in pairs],
    }
    pieces = [body[i : i + 65536] for i in range(0, len(body), 65536)] or [b""]
    never = asyncio.Event()
    sent = []

    async def receive():
        if not pieces:
            await never.wait()
        piece = pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

    async def send(message):
        sent.append(message)
        if message.get("body"):
            heard(message["body"])

    await app(scope, receive, send)
    start = next(message for message in sent if message["type"] == "http.response.start")
    data = b"".join(m.get("body", b"") for m in sent if m["type"] == "http.response.body")
    received = {name.decode(): value.decode() for name, value in start["headers"]}
    return Reply(start["status"], received, data)
