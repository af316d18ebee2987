"""The part of Ollama's API that works with models that are there: nothing pulls or makes any."""

from __future__ import annotations

import datetime
import hashlib
import time
from collections.abc import Sequence
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp

from martlet import __version__
from martlet.server.answers import ResultAnswer, Tally
from martlet.server.backend import ServedModel
from martlet.server.exchange import Exchange
from martlet.server.failures import ApiError
from martlet.server.messages import CallDetails, Event, Task
from martlet.server.ollama_fields import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from martlet.server.openai_embeddings import embed
from martlet.server.openai_words import USUAL_TOKENS, job_spec, limited, reply_tokens
from martlet.server.service import Service
from martlet.server.tool_fields import ollama_call, tool_task
from martlet.server.wire import NDJSON

__all__ = [
    "OllamaAnswer",
    "chat",
    "embed_texts",
    "generate",
    "ps",
    "short_size",
    "show",
    "tags",
    "version",
]

_NANOSECONDS = 1_000_000_000
_MILLION, _BILLION = 1_000_000, 1_000_000_000
_CAPABILITIES = {"chat": "completion", "write": "completion", "fill": "insert"}


class OllamaAnswer:
    """Ollama's words for a text; durations are nanoseconds."""

    def __init__(self, name: str, kind: Literal["chat", "generate"]) -> None:
        self.tally = Tally()
        self._name = name
        self._kind = kind
        self._start = time.monotonic()

    def add(self, job: int, event: Event) -> Sequence[dict[str, Any]]:
        """A piece of the text."""
        self.tally.add(job, event)
        if "call" in event:
            return [{**self._words("", calls=[event["call"]]), "done": False}]
        text = event.get("text")
        if not text:
            return ()
        words = self._words("", text) if event.get("is_thought") else self._words(text)
        return [{**words, "done": False}]

    def end(self) -> Sequence[dict[str, Any]]:
        """The figures, with an empty text."""
        return [self._last("")]

    def whole(self) -> dict[str, Any]:
        """The text with its figures."""
        choices = self.tally.in_order()
        thoughts = "".join(choice.thoughts for choice in choices)
        calls = [call for choice in choices for call in choice.calls]
        return self._last("".join(choice.text for choice in choices), thoughts, calls)

    def nothing(self, reason: str) -> dict[str, Any]:
        """The answer to a request that only wants the model to be in memory."""
        return {**self._words(""), "done": True, "done_reason": reason}

    def _last(
        self, text: str, thoughts: str = "", calls: Sequence[CallDetails] = ()
    ) -> dict[str, Any]:
        reason = self.tally.in_order()[0].finish_reason
        return {
            **self._words(text, thoughts, calls),
            "done": True,
            "done_reason": "stop" if reason == "tool_calls" else reason,
            "total_duration": _nanoseconds(time.monotonic() - self._start),
            "load_duration": 0,
            "prompt_eval_count": self.tally.prompt_tokens,
            "prompt_eval_duration": _nanoseconds(self.tally.prefill_seconds),
            "eval_count": self.tally.output_tokens,
            "eval_duration": _nanoseconds(self.tally.decode_seconds),
        }

    def _words(
        self, text: str, thoughts: str = "", calls: Sequence[CallDetails] = ()
    ) -> dict[str, Any]:
        words = {"model": self._name, "created_at": _time(time.time())}
        thinking = {"thinking": thoughts} if thoughts else {}
        if self._kind == "generate":
            return {**words, "response": text, **thinking}
        message: dict[str, Any] = {"role": "assistant", "content": text, **thinking}
        if calls:
            message["tool_calls"] = [ollama_call(call) for call in calls]
        return {**words, "message": message}


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _NANOSECONDS)


def _time(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.isoformat().replace("+00:00", "Z")


def short_size(count: int) -> str:
    """A number of weights as it is spoken of: "24.1M", "11.1B"."""
    if count < _BILLION:
        return f"{count / _MILLION:.1f}M"
    return f"{count / _BILLION:.1f}B"


async def chat(service: Service, request: Request) -> ASGIApp:
    """Answer the last message of a dialogue; streamed unless told otherwise."""
    body = await service.read(request, OllamaChatRequest)
    model = service.find(body.name, "chat")
    answer = OllamaAnswer(body.model, "chat")
    if not body.messages:
        return JSONResponse(answer.nothing("load"))
    task: Task = {"kind": "chat", "messages": body.to_jobs()}
    tools = tool_task(body.tools)
    if tools is not None:
        task["tools"] = tools
    return _exchange(service, request, model, body, task, answer)


async def generate(service: Service, request: Request) -> ASGIApp:
    """Go on with a text, fill the gap before a suffix, or answer, as the model can."""
    body = await service.read(request, OllamaGenerateRequest)
    model = service.find(body.name, None if body.suffix is None else "fill")
    answer = OllamaAnswer(body.model, "generate")
    if not body.prompt and not body.suffix:
        return JSONResponse(answer.nothing("load"))
    task = _task_of(body, model)
    return _exchange(service, request, model, body, task, answer)


def _task_of(body: OllamaGenerateRequest, model: ServedModel) -> Task:
    prompt = body.prompt or ""
    if body.suffix is not None:
        return {"kind": "fill", "pieces": [prompt, body.suffix]}
    tasks = model.hello["tasks"] if model.hello else []
    if "chat" not in tasks or (body.raw and "write" in tasks):
        _require_plain(body, model)
        return {"kind": "complete", "prompt": prompt}
    if body.raw:
        message = f"{model.name} answers and does not go on with a text: raw is not supported"
        raise ApiError(400, "unsupported_parameter", message, "raw")
    told = [{"role": "system", "content": body.system}] if body.system else []
    return {"kind": "chat", "messages": [*told, {"role": "user", "content": prompt}]}


def _require_plain(body: OllamaGenerateRequest, model: ServedModel) -> None:
    """Refuse what has a meaning for chats alone."""
    for name, asked in (("system", body.system), ("think", body.think)):
        if asked:
            message = f"{model.name} goes on with a text here: {name} is not supported"
            raise ApiError(400, "unsupported_parameter", message, name)


def _exchange(
    service: Service,
    request: Request,
    model: ServedModel,
    body: OllamaChatRequest | OllamaGenerateRequest,
    task: Task,
    answer: OllamaAnswer,
) -> Exchange:
    is_chat = task["kind"] == "chat"
    if body.think is not None and is_chat:
        task["thinking"] = body.think
    usual_tokens = reply_tokens(model) if is_chat else USUAL_TOKENS
    params = limited(body.params(), service.settings, usual_tokens)
    spec = job_spec(task, params, format=body.job_format())
    framing = NDJSON if body.is_streamed else None
    return Exchange(service, model, [spec], service.client(request), answer, framing)


async def embed_texts(service: Service, request: Request) -> ASGIApp:
    """Embeddings of texts. One that is too long is refused, never cut."""
    body = await service.read(request, OllamaEmbedRequest)
    start = time.monotonic()

    def word(vectors: list[list[float]], prompt_tokens: int) -> dict[str, Any]:
        return {
            "model": body.model,
            "embeddings": vectors,
            "total_duration": _nanoseconds(time.monotonic() - start),
            "load_duration": 0,
            "prompt_eval_count": prompt_tokens,
        }

    client = service.client(request)
    return embed(service, body.name, body.inputs, client, ResultAnswer(word))


async def tags(service: Service, request: Request) -> ASGIApp:
    """All models."""
    models = [_model_words(model) for model in service.backend.models.values()]
    return JSONResponse({"models": models})


async def ps(service: Service, request: Request) -> ASGIApp:
    """The models that are in memory, which they stay."""
    models = [
        {
            **_model_words(model),
            "expires_at": "9999-12-31T23:59:59Z",
            "size_vram": (model.status["gpu_bytes"] or 0) if model.status else 0,
        }
        for model in service.backend.models.values()
        if model.state == "ready"
    ]
    return JSONResponse({"models": models})


async def show(service: Service, request: Request) -> ASGIApp:
    """What is known of a model."""
    body = await service.read(request, OllamaShowRequest)
    model = service.find(body.wanted())
    words = _model_words(model)
    family = words["details"]["family"]
    info: dict[str, Any] = {"general.architecture": family}
    capabilities: list[str] = []
    if model.hello is not None:
        reads_tokens = model.hello["encoder_tokens"] or model.hello["slot_tokens"]
        info[f"{family}.context_length"] = reads_tokens
        info["general.parameter_count"] = model.hello["num_weights"]
        capabilities = sorted({_CAPABILITIES[task] for task in model.hello["tasks"]})
        capabilities += ["embedding"] if model.hello["can_embed"] else []
        capabilities += ["thinking"] if model.hello["thinks"] else []
        capabilities += ["tools"] if "tools" in model.hello["chat_controls"] else []
    return JSONResponse(
        {
            "modelfile": "",
            "parameters": "",
            "template": "",
            "details": words["details"],
            "model_info": info,
            "capabilities": capabilities,
            "modified_at": words["modified_at"],
        }
    )


async def version(service: Service, request: Request) -> ASGIApp:
    """The version of this server."""
    return JSONResponse({"version": __version__})


def _model_words(model: ServedModel) -> dict[str, Any]:
    family = model.hello["family"] if model.hello else ""
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": _time(model.created),
        "size": model.hello["weight_bytes"] if model.hello else 0,
        "digest": hashlib.sha256(model.name.encode()).hexdigest(),
        "details": {
            "parent_model": "",
            "format": "martlet",
            "family": family,
            "families": [family] if family else [],
            "parameter_size": short_size(model.hello["num_weights"]) if model.hello else "",
            "quantization_level": model.hello["weight_type"] if model.hello else "",
        },
    }
