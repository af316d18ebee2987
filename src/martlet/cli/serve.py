"""martlet serve: models over HTTP, for programs and in the browser."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from martlet.cli.fetching import locate_model
from martlet.cli.options import (
    TEXT,
    LoadOptions,
    Number,
    ServingOptions,
    as_json,
    load_options,
    serving_options,
)
from martlet.cli.output import duration, note
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.server.backend import Backend
    from martlet.server.settings import ModelSettings, ServerSettings

__all__ = ["command"]

_API_KEY_VARIABLE = "MARTLET_API_KEY"
_LONGEST_KEY_FILE_BYTES = 4096


@click.command("serve")
@click.argument("models", metavar="[MODEL]...", type=TEXT, nargs=-1)
@click.option(
    "--host",
    type=TEXT,
    metavar="ADDRESS",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; one that other machines can reach needs an API key.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    metavar="PORT",
    default=8000,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--api-key",
    type=TEXT,
    envvar=_API_KEY_VARIABLE,
    metavar="KEY",
    help=f"What clients must show; better set as {_API_KEY_VARIABLE}, which no list of processes "
    "shows.",
)
@click.option(
    "--api-key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Read the key from the first line of this file.",
)
@click.option(
    "--allow-host",
    type=TEXT,
    multiple=True,
    metavar="NAME",
    help="A name that clients may call this server by; may be repeated.",
)
@click.option(
    "--allow-origin",
    type=TEXT,
    multiple=True,
    metavar="URL",
    help="A web page's origin that may call this server; may be repeated.",
)
@click.option(
    "--max-queue",
    type=click.IntRange(0, 100_000),
    metavar="N",
    default=32,
    show_default=True,
    help="Requests that may wait for a model.",
)
@click.option(
    "--max-queued-tokens",
    type=click.IntRange(1),
    metavar="N",
    default=65536,
    show_default=True,
    help="Characters that the prompts of those may have together.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1),
    metavar="N",
    help="What a request may ask for at most; left out, what a slot holds.",
)
@click.option(
    "--timeout",
    type=Number(1, 86_400),
    metavar="SECONDS",
    default=600,
    show_default=True,
    help="End a request after this time, waiting included.",
)
@click.option(
    "--drain",
    type=Number(0, 86_400),
    metavar="SECONDS",
    default=30,
    show_default=True,
    help="What running answers get when the server is told to stop.",
)
@as_json
@load_options
@serving_options
def command(
    models: tuple[str, ...],
    api_key: str | None,
    api_key_file: Path | None,
    as_json: bool,
    loading: LoadOptions,
    serving: ServingOptions,
    **limits: Any,
) -> None:
    """Serve models over HTTP: the OpenAI and Ollama interfaces, and a web app.

    MODEL is as for the other verbs; without any, the three bundled models are served. Every model
    is a process of its own: limits of memory, slots and context are those of each. SIGTERM or
    Ctrl-C lets running answers end, a second one does not wait.
    """
    settings = _settings(
        _models(models, {**loading.arguments(), **serving.arguments()}),
        _key(api_key, api_key_file),
        limits,
    )
    # Starlette and uvicorn, which --help need not wait for.
    from martlet.server.run import serve

    serve(settings, _Announcements(as_json, settings))


def _models(names: tuple[str, ...], options: dict[str, Any]) -> tuple[ModelSettings, ...]:
    """What to serve; what is not here is fetched, or told to be nowhere, before anything starts."""
    from martlet.hub.catalogue import BUNDLED
    from martlet.hub.locate import short_name
    from martlet.server.settings import ModelSettings

    if options["slots"] is None:
        options["slots"] = "auto"
    models = []
    for name in names or BUNDLED:
        path = locate_model(name)
        # A file keeps its name: in the hub's cache it is a link to one that has none.
        path = path.resolve() if path.is_dir() else path.parent.resolve() / path.name
        models.append(ModelSettings(short_name(name), str(path), options))
    return tuple(models)


def _key(api_key: str | None, api_key_file: Path | None) -> str | None:
    if api_key_file is None:
        return api_key
    try:
        with api_key_file.open("rb") as file:
            raw = file.read(_LONGEST_KEY_FILE_BYTES)
        lines = raw.decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(f"the API key cannot be read from {api_key_file}: {reason}") from error
    if not lines or not lines[0].strip():
        raise UsageError(f"{api_key_file} has no API key in its first line; write one there")
    return lines[0].strip()


def _settings(
    models: tuple[ModelSettings, ...], api_key: str | None, limits: dict[str, Any]
) -> ServerSettings:
    from martlet.server.settings import ServerSettings

    return ServerSettings(
        models=models,
        host=limits["host"],
        port=limits["port"],
        api_key=api_key,
        allowed_hosts=limits["allow_host"],
        allowed_origins=limits["allow_origin"],
        max_queue=limits["max_queue"],
        max_queued_tokens=limits["max_queued_tokens"],
        max_tokens=limits["max_tokens"],
        request_seconds=limits["timeout"],
        drain_seconds=limits["drain"],
    )


class _Announcements:
    """Lines about the server: on stderr for people, or on stdout as JSON, one object a line."""

    def __init__(self, as_json: bool, settings: ServerSettings) -> None:
        self._as_json = as_json
        self._settings = settings
        self._address = ""

    def listening(self, address: str) -> None:
        """The port is open; from here on there is something to log."""
        _log_to_stderr()
        self._address = address
        names = [model.name for model in self._settings.models]
        if self._as_json:
            _print_line({"event": "listening", "address": address, "models": names})
        else:
            note(f"listening on {address}, loading {', '.join(names)}")

    def settled(self, backend: Backend) -> None:
        """Every model is ready or has failed."""
        if self._as_json:
            _print_line(
                {
                    "event": "ready",
                    "address": self._address,
                    "models": [
                        {"name": model.name, "state": model.state, "failure": model.failure}
                        for model in backend.models.values()
                    ],
                }
            )
            return
        for model in backend.models.values():
            hello = model.hello
            if model.state != "ready" or hello is None:
                note(f"{model.name} could not be loaded: {model.failure}")
                continue
            note(
                f"{model.name} is ready after {duration(hello['load_seconds'])}: "
                f"{hello['num_slots']} texts at a time; {hello['plan']['description']}"
            )
        note(f"web app and API: {self._address}  (Ctrl-C stops)")


def _print_line(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False) + "\n")
    sys.stdout.flush()


class _WithoutQuery(logging.Filter):
    """Takes the query off the requests in the access log: it may hold what is nobody's business."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args
            )
        return True


def _log_to_stderr() -> None:
    """Warnings of the server, and a line for each request."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (
        ("martlet.server", logging.INFO),
        ("uvicorn.error", logging.WARNING),
        ("uvicorn.access", logging.INFO),
    ):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
    logging.getLogger("uvicorn.access").addFilter(_WithoutQuery())
