"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.requests import Request
from starlette.types import ASGIApp

from martlet.server.answers import Tally, Written, new_id
from martlet.server.exchange import Exchange
from martlet.server.failures import ApiError
from martlet.server.fields import Body, Flag, MaxTokens
from martlet.server.messages import Event, JobSpec, Task
from martlet.server.openai_words import (
    USUAL_TOKENS,
    GenerationFields,
    chat_logprobs,
    fingerprint,
    job_spec,
    limited,
    reply_tokens,
)
from martlet.server.response_format import ResponseFormat
from martlet.server.service import Service
from martlet.server.settings import ServerSettings
from martlet.server.wire import SSE

__all__ = ["ChatAnswer", "ChatRequest", "Content", "chat_job", "create_chat_completion"]


def _joined(content: Any) -> Any:
    """Parts of text as one text. Nothing that a part points to is ever fetched."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str):
            raise PydanticCustomError(
                "unsupported_content_part",
                "models here read text alone: a part of content must be "
                '{{"type": "text", "text": "..."}}, got one of type {kind}',
                {"kind": f"{kind:.40}" if isinstance(kind, str) else "none"},
            )
        texts.append(part["text"])
    return "\n".join(texts)


_TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
Content = Annotated[
    str,
    BeforeValidator(_joined),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": _TEXT_PART}]}),
]
"""The text of a message, or the parts that it is made of."""


class ChatMessage(Body):
    """A turn of a dialogue."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": (),
        "name": (),
        "refusal": (),
        "tool_call_id": (),
        "tool_calls": ([],),
    }
    no_effect: ClassVar[frozenset[str]] = frozenset({"annotations"})

    role: Literal["system", "developer", "user", "assistant"]
    content: Content
    reasoning_content: str | None = None

    def to_job(self) -> dict[str, str]:
        """The message as a model is sent it."""
        # A developer's message is what a system's was called before.
        role = "system" if self.role == "developer" else self.role
        message = {"role": role, "content": self.content}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        return message


class TemplateSettings(Body):
    """What vLLM's clients say to a chat template."""

    model_config = ConfigDict(extra="forbid")

    enable_thinking: Flag = None


class ChatRequest(GenerationFields):
    """The body of a request for a chat completion."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **GenerationFields.refused,
        "audio": (),
        "function_call": ("none", "auto"),
        "functions": ([],),
        "modalities": (["text"],),
        "moderation": (),
        "prediction": (),
        "reasoning_effort": ("none",),
        "add_generation_prompt": (True,),
        "chat_template": (),
        "continue_final_message": (False,),
        "documents": ([],),
        "tool_choice": ("none", "auto"),
        "verbosity": ("medium",),
        "web_search_options": (),
    }
    no_effect: ClassVar[frozenset[str]] = GenerationFields.no_effect | {"parallel_tool_calls"}

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[Any] | None = None
    max_completion_tokens: MaxTokens | None = None
    logprobs: Flag = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateSettings | None = None
    reasoning_effort: Literal["none"] | None = None

    @property
    def thinking(self) -> bool | None:
        """Whether the model shall think first; None where the request leaves that to it."""
        kwargs = self.chat_template_kwargs
        if kwargs is not None and kwargs.enable_thinking is not None:
            return kwargs.enable_thinking
        return None if self.reasoning_effort is None else False

    def check_chat(self, settings: ServerSettings) -> None:
        """What depends on more than one field, or on the server.

        Raises:
            ApiError: 400.
        """
        self.check(settings, self.n or 1)
        if self.tools:
            raise ApiError(
                400,
                "unsupported_parameter",
                "calling tools is not supported; leave tools out",
                "tools",
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise ApiError(
                400, "invalid_value", "top_logprobs needs logprobs to be true", "top_logprobs"
            )
        both = (self.max_tokens, self.max_completion_tokens)
        if None not in both and both[0] != both[1]:
            raise ApiError(
                400,
                "invalid_value",
                f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}; give one",
                "max_completion_tokens",
            )


def chat_job(
    body: ChatRequest, settings: ServerSettings, usual_tokens: int = USUAL_TOKENS
) -> JobSpec:
    """What the model is sent for a request; ``usual_tokens`` is how long its replies get."""
    params = body.sampling()
    if body.max_completion_tokens is not None:
        params["max_tokens"] = body.max_completion_tokens
    task: Task = {"kind": "chat", "messages": [message.to_job() for message in body.messages]}
    if body.thinking is not None:
        task["thinking"] = body.thinking
    return job_spec(
        task,
        limited(params, settings, usual_tokens),
        body.n or 1,
        (body.top_logprobs or 0) if body.logprobs else None,
        body.response_format.to_job() if body.response_format else None,
    )


class ChatAnswer:
    """A chat completion, or the chunks of one."""

    def __init__(self, body: ChatRequest, answer_id: str, system_fingerprint: str) -> None:
        self.tally = Tally()
        self._body = body
        self._id = answer_id
        self._fingerprint = system_fingerprint

    def add(self, job: int, event: Event) -> Sequence[dict[str, Any]]:
        """Chunks: the role when a choice starts, then its text, then why it ended."""
        choice = self.tally.add(job, event)
        index = event.get("choice", 0)
        match event["event"]:
            case "started":
                return [self._chunk(index, {"role": "assistant", "content": ""})]
            case "text" if event.get("text") or event.get("tokens"):
                part = "reasoning_content" if event.get("is_thought") else "content"
                delta = {part: event.get("text", "")}
                return [self._chunk(index, delta, tokens=event.get("tokens"))]
            case "finished":
                held_back = event.get("text", "")
                chunks = [self._chunk(index, {"content": held_back})] if held_back else []
                return [*chunks, self._chunk(index, {}, reason=choice.finish_reason)]
        return ()

    def end(self) -> Sequence[dict[str, Any]]:
        """The chunk with the count of tokens, where it was asked for."""
        if not self._body.wants_usage:
            return ()
        usage = {"choices": [], "usage": self.tally.usage(), "timings": self.tally.timings()}
        return [{**self._head("chat.completion.chunk"), **usage}]

    def whole(self) -> dict[str, Any]:
        """The chat completion."""
        choices = [self._choice(i, choice) for i, choice in enumerate(self.tally.in_order())]
        return {
            **self._head("chat.completion"),
            "choices": choices,
            "usage": self.tally.usage(),
            "timings": self.tally.timings(),
        }

    def _choice(self, index: int, choice: Written) -> dict[str, Any]:
        message = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.thoughts:
            message["reasoning_content"] = choice.thoughts
        return {
            "index": index,
            "message": message,
            "logprobs": chat_logprobs(choice.tokens) if self._body.logprobs else None,
            "finish_reason": choice.finish_reason,
        }

    def _chunk(
        self,
        index: int,
        delta: dict[str, Any],
        reason: str | None = None,
        tokens: Any = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": chat_logprobs(tokens) if tokens and self._body.logprobs else None,
            "finish_reason": reason,
        }
        chunk = {**self._head("chat.completion.chunk"), "choices": [choice]}
        return {**chunk, "usage": None} if self._body.wants_usage else chunk

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self.tally.created,
            "model": self._body.model,
            "system_fingerprint": self._fingerprint,
        }


async def create_chat_completion(service: Service, request: Request) -> ASGIApp:
    """Answer the last message of a dialogue."""
    body = await service.read(request, ChatRequest)
    body.check_chat(service.settings)
    model = service.find(body.model, "chat")
    answer_id = new_id("chatcmpl", request.state.request_id)
    return Exchange(
        service,
        model,
        [chat_job(body, service.settings, reply_tokens(model))],
        service.client(request, body.queue_user),
        ChatAnswer(body, answer_id, fingerprint(model)),
        SSE if body.stream else None,
    )
