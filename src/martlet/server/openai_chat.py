"""``POST /v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field
from starlette.requests import Request
from starlette.types import ASGIApp

from martlet.server.answers import Tally, Written, new_id
from martlet.server.chat_messages import ChatMessage
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
from martlet.server.tool_fields import openai_call, tool_task
from martlet.server.wire import SSE

__all__ = ["ChatAnswer", "ChatRequest", "chat_job", "create_chat_completion"]


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
        "verbosity": ("medium",),
        "web_search_options": (),
    }

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: Flag = None
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
    """What the model is sent for a request; ``usual_tokens`` is how long its replies get.

    Raises:
        ApiError: 400; tools are malformed, or more is asked for than the server allows.
    """
    params = body.sampling()
    if body.max_completion_tokens is not None:
        params["max_tokens"] = body.max_completion_tokens
    task: Task = {"kind": "chat", "messages": [message.to_job() for message in body.messages]}
    if body.thinking is not None:
        task["thinking"] = body.thinking
    tools = tool_task(body.tools, body.tool_choice, body.parallel_tool_calls is not False)
    if tools is not None:
        task["tools"] = tools
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
            case "text" if "call" in event:
                call = openai_call(event["call"], len(choice.calls) - 1)
                return [self._chunk(index, {"tool_calls": [call]}, tokens=event.get("tokens"))]
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
        content = None if choice.calls and not choice.text else choice.text
        message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None}
        if choice.thoughts:
            message["reasoning_content"] = choice.thoughts
        if choice.calls:
            message["tool_calls"] = [openai_call(call) for call in choice.calls]
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
