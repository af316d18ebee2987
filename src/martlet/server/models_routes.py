"""``GET /v1/models``: answered from what is known, also while a model loads."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from martlet.server.backend import ServedModel
from martlet.server.service import Service

__all__ = ["get_model", "list_models"]


async def list_models(service: Service, request: Request) -> ASGIApp:
    """All models, in the order in which they were named."""
    models = [_words(model) for model in service.backend.models.values()]
    return JSONResponse({"object": "list", "data": models})


async def get_model(service: Service, request: Request) -> ASGIApp:
    """One model."""
    return JSONResponse(_words(service.find(request.path_params["model"])))


def _words(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "martlet",
    }
