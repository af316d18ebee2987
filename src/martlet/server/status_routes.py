"""How the server does: for probes, for Prometheus, and for the page about the machine."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from martlet import __version__
from martlet.device.probe import probe_cpu, probe_ram
from martlet.server.backend import Backend, ServedModel
from martlet.server.failures import ApiError, without_folders
from martlet.server.gpus import read_gpus
from martlet.server.metrics import METRICS_MEDIA_TYPE
from martlet.server.service import Service

__all__ = ["get_plan", "get_status", "health", "livez", "metrics", "readyz"]

_HELLO_FIELDS = (
    "family",
    "tasks",
    "thinks",
    "chat_controls",
    "can_embed",
    "num_slots",
    "slot_tokens",
    "encoder_tokens",
    "num_weights",
    "weight_type",
    "weight_bytes",
    "load_seconds",
)
_STATUS_FIELDS = (
    "cache_tokens",
    "cache_capacity_tokens",
    "tokens_per_second",
    "prompt_tokens_total",
    "output_tokens_total",
    "rss_bytes",
    "gpu_bytes",
)


async def livez(service: Service, request: Request) -> ASGIApp:
    """The server itself lives, whatever its models do."""
    return JSONResponse({"status": "ok"})


async def health(service: Service, request: Request) -> ASGIApp:
    """Whether all models can answer; says no more, since it needs no key."""
    problem = _problem(service.backend)
    if problem is None:
        return JSONResponse({"status": "ok"})
    code, _, headers = problem
    message = {"loading": "Loading model", "draining": "Shutting down"}.get(code, "Model is down")
    raise ApiError(503, code, message, headers=headers)


async def readyz(service: Service, request: Request) -> ASGIApp:
    """The same with the reason."""
    problem = _problem(service.backend)
    if problem is None:
        return JSONResponse({"status": "ok", "models": list(service.backend.models)})
    code, reason, headers = problem
    raise ApiError(503, code, reason, headers=headers)


def _problem(backend: Backend) -> tuple[str, str, dict[str, str]] | None:
    """(a word, the reason, headers) where not everything can be answered now."""
    if backend.is_draining:
        return "draining", "the server is shutting down", {"x-should-retry": "false"}
    away = [model for model in backend.models.values() if model.state != "ready"]
    if not away:
        return None
    reason = "; ".join(_reason(model) for model in away)
    if any(model.state == "failed" for model in away):
        return "model_failed", reason, {"x-should-retry": "false"}
    seconds = max(1, round(max(model.retry_after_seconds for model in away)))
    return "loading", reason, {"retry-after": str(seconds)}


def _reason(model: ServedModel) -> str:
    why = f": {without_folders(model.failure)}" if model.failure else ""
    return f"{model.name} is {model.state}{why}"


async def metrics(service: Service, request: Request) -> ASGIApp:
    """All figures in Prometheus' text format."""
    return Response(service.metrics.render(), media_type=METRICS_MEDIA_TYPE)


async def get_plan(service: Service, request: Request) -> ASGIApp:
    """Where each part of each model lives; null while a model loads."""
    plans = {
        model.name: model.hello["plan"] if model.hello else None
        for model in service.backend.models.values()
    }
    return JSONResponse({"models": plans})


async def get_status(service: Service, request: Request) -> ASGIApp:
    """The machine and all models at this moment."""
    host = await asyncio.to_thread(_host)
    backend = service.backend
    return JSONResponse(
        {
            "version": __version__,
            "uptime_seconds": time.time() - backend.started_at,
            "is_draining": backend.is_draining,
            "host": host,
            "models": [_model_words(model) for model in backend.models.values()],
        }
    )


def _host() -> dict[str, Any]:
    ram = probe_ram()
    return {
        "total_ram_bytes": ram.total_bytes,
        "available_ram_bytes": ram.available_bytes,
        "num_cores": probe_cpu().num_cores,
        "gpus": read_gpus(),
    }


def _model_words(model: ServedModel) -> dict[str, Any]:
    """What is known of a model; what is not known yet is null."""
    hello: dict[str, Any] = dict(model.hello or {})
    status: dict[str, Any] = dict(model.status or {})
    plan: dict[str, Any] = hello.get("plan", {})
    seconds_per_token = plan.get("seconds_per_token")
    return {
        "name": model.name,
        "state": model.state,
        "failure": without_folders(model.failure) if model.failure else None,
        "created": model.created,
        "device": plan.get("device"),
        "predicted_tokens_per_second": 1 / seconds_per_token if seconds_per_token else None,
        "num_running": model.num_running_texts,
        "num_waiting": model.num_waiting_texts,
        "num_jobs": model.num_jobs,
        "max_queue": model.max_queue,
        "num_restarts": model.num_restarts,
        **{name: hello.get(name) for name in _HELLO_FIELDS},
        **{name: status.get(name) for name in _STATUS_FIELDS},
    }
