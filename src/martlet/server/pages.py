"""The web app: files that were built into the package, or a page that says how to build them."""

from __future__ import annotations

import html
import mimetypes
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp

from martlet.server.service import Endpoint, Service

__all__ = ["STATIC_FOLDER", "page_endpoints"]

STATIC_FOLDER = Path(__file__).parent / "static"

_INDEX = "index.html"
# Vite puts a hash of the content into the names of what it writes here.
_HASHED_FOLDER = "assets/"
_FOREVER = "public, max-age=31536000, immutable"
_TYPES = {".js": "text/javascript", ".webmanifest": "application/manifest+json"}


def page_endpoints(others: list[Endpoint], folder: Path = STATIC_FOLDER) -> list[Endpoint]:
    """An endpoint for each file of the web app, which is read now and kept.

    So no path of a request is ever opened, and pages stay together while others are being built.
    The pages of the app are fragments of "/", which only the browser sees. ``others`` are listed
    where there is no web app.
    """
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = [_file_endpoint(f"/{name}", folder / name, name) for name in names if name != _INDEX]
    return [_index_endpoint(folder / _INDEX, others), *files]


def _file_endpoint(path: str, file: Path, name: str) -> Endpoint:
    cache = _FOREVER if name.startswith(_HASHED_FOLDER) else "no-cache"
    media_type = _TYPES.get(file.suffix) or mimetypes.guess_type(name)[0]
    content = file.read_bytes()

    async def get(service: Service, request: Request) -> ASGIApp:
        return Response(content, media_type=media_type, headers={"cache-control": cache})

    return Endpoint("GET", path, get, f"Web app: {name}", is_public=True, in_openapi=False)


def _index_endpoint(index: Path, others: list[Endpoint]) -> Endpoint:
    page = index.read_bytes() if index.is_file() else _page_without_app(others).encode()

    async def get(service: Service, request: Request) -> ASGIApp:
        headers = {"cache-control": "no-cache", "vary": "accept"}
        if "text/html" not in request.headers.get("accept", ""):
            # What Ollama's clients look for; browsers always name HTML.
            return PlainTextResponse("Ollama is running", headers=headers)
        return HTMLResponse(page, headers=headers)

    return Endpoint("GET", "/", get, "Web app", is_public=True, in_openapi=False)


def _page_without_app(others: list[Endpoint]) -> str:
    rows = "\n".join(
        f"<li><code>{e.method} {html.escape(e.path)}</code> {html.escape(e.summary)}</li>"
        for e in others
        if e.in_openapi
    )
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>Martlet</title></head>
<body>
<h1>Martlet is serving</h1>
<p>The web app is not part of this installation. In a clone, <code>make web</code> builds it
(it needs Node.js); then start the server again.</p>
<h2>Endpoints</h2>
<ul>
{rows}
</ul>
</body>
</html>
"""
