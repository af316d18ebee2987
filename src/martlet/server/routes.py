"""Every route of the server, in one table."""

from __future__ import annotations

from typing import Any

from martlet.server import (
    fill_routes,
    infill,
    models_routes,
    ollama,
    openai_chat,
    openai_completions,
    openai_embeddings,
    status_routes,
    token_routes,
)
from martlet.server.ollama_fields import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from martlet.server.service import Endpoint

__all__ = ["api_endpoints"]

_SSE = "text/event-stream"
_NDJSON = "application/x-ndjson"


def _object(*required: str) -> dict[str, Any]:
    """The schema of an object that has at least these fields."""
    return {"type": "object", "required": list(required)}


_OPENAI = (
    Endpoint(
        "GET",
        "/v1/models",
        models_routes.list_models,
        "List the models",
        answer=_object("object", "data"),
    ),
    Endpoint(
        "GET",
        "/v1/models/{model:path}",
        models_routes.get_model,
        "Look up a model",
        answer=_object("id", "object", "created", "owned_by"),
    ),
    Endpoint(
        "POST",
        "/v1/chat/completions",
        openai_chat.create_chat_completion,
        "Answer the last message of a dialogue",
        openai_chat.ChatRequest,
        _object("id", "object", "created", "model", "choices", "usage", "timings"),
        _SSE,
    ),
    Endpoint(
        "POST",
        "/v1/completions",
        openai_completions.create_completion,
        "Go on with a text, or write what stands before a suffix",
        openai_completions.CompletionRequest,
        _object("id", "object", "created", "model", "choices", "usage", "timings"),
        _SSE,
    ),
    Endpoint(
        "POST",
        "/v1/embeddings",
        openai_embeddings.create_embeddings,
        "Embed texts",
        openai_embeddings.EmbeddingRequest,
        _object("object", "data", "model", "usage"),
    ),
    Endpoint(
        "POST",
        "/v1/fill",
        fill_routes.create_fill,
        "Fill all blanks of a text",
        fill_routes.FillRequest,
        _object("id", "object", "created", "model", "text", "blanks", "usage", "timings"),
        _SSE,
    ),
)
_LLAMA = (
    Endpoint(
        "POST",
        "/infill",
        infill.create_infill,
        "Write what stands between a prefix and a suffix",
        infill.InfillRequest,
        _object("content", "stop", "timings"),
        _SSE,
    ),
    Endpoint(
        "POST",
        "/tokenize",
        token_routes.tokenize,
        "The token ids of a text",
        token_routes.TokenizeRequest,
        _object("tokens", "count"),
    ),
    Endpoint(
        "POST",
        "/detokenize",
        token_routes.detokenize,
        "The text of token ids",
        token_routes.DetokenizeRequest,
        _object("content"),
    ),
)
_OLLAMA = (
    Endpoint(
        "POST",
        "/api/chat",
        ollama.chat,
        "Ollama: answer the last message of a dialogue",
        OllamaChatRequest,
        _object("model", "message", "done"),
        _NDJSON,
    ),
    Endpoint(
        "POST",
        "/api/generate",
        ollama.generate,
        "Ollama: go on with a text, or fill before a suffix",
        OllamaGenerateRequest,
        _object("model", "response", "done"),
        _NDJSON,
    ),
    Endpoint(
        "POST",
        "/api/embed",
        ollama.embed_texts,
        "Ollama: embed texts",
        OllamaEmbedRequest,
        _object("model", "embeddings"),
    ),
    Endpoint(
        "POST",
        "/api/show",
        ollama.show,
        "Ollama: what is known of a model",
        OllamaShowRequest,
        _object("details", "model_info", "capabilities"),
    ),
    Endpoint("GET", "/api/tags", ollama.tags, "Ollama: list the models", answer=_object("models")),
    Endpoint("GET", "/api/ps", ollama.ps, "Ollama: models in memory", answer=_object("models")),
    Endpoint(
        "GET", "/api/version", ollama.version, "Ollama: the version", answer=_object("version")
    ),
)
_STATUS = (
    Endpoint(
        "GET",
        "/livez",
        status_routes.livez,
        "Whether the server lives",
        answer=_object("status"),
        is_public=True,
    ),
    Endpoint(
        "GET",
        "/health",
        status_routes.health,
        "Whether all models can answer",
        answer=_object("status"),
        is_public=True,
    ),
    Endpoint(
        "GET",
        "/readyz",
        status_routes.readyz,
        "Whether all models can answer, with the reason",
        answer=_object("status", "models"),
    ),
    Endpoint(
        "GET",
        "/api/status",
        status_routes.get_status,
        "The machine and all models at this moment",
        answer=_object("version", "uptime_seconds", "is_draining", "host", "models"),
    ),
    Endpoint(
        "GET",
        "/api/plan",
        status_routes.get_plan,
        "Where each part of each model lives",
        answer=_object("models"),
    ),
    Endpoint("GET", "/metrics", status_routes.metrics, "Figures for Prometheus"),
)


def api_endpoints() -> list[Endpoint]:
    """All endpoints but the pages. Each under /v1 is also there without it, and the other way."""
    endpoints = [*_OPENAI, *_LLAMA, *_OLLAMA, *_STATUS]
    for endpoint in _OPENAI:
        endpoints.append(endpoint.at(endpoint.path.removeprefix("/v1")))
    for endpoint in _LLAMA:
        endpoints.append(endpoint.at(f"/v1{endpoint.path}"))
    return endpoints
