"""The messages of a dialogue in OpenAI's words, with calls of tools and what they gave."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

from martlet.engine.tools import MAX_TOOLS
from martlet.server.fields import Body, CallingMessage

__all__ = ["ChatMessage", "Content"]


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


class CalledFunction(Body):
    """A function with its arguments, which are JSON as text."""

    name: str
    arguments: str


class MessageCall(Body):
    """The call of a tool, as an earlier answer had it."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class ChatMessage(CallingMessage):
    """A turn of a dialogue."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "audio": (),
        "function_call": (),
        "name": (),
        "refusal": (),
    }
    no_effect: ClassVar[frozenset[str]] = frozenset({"annotations"})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content
    reasoning_content: str | None = None
    tool_calls: Annotated[list[MessageCall], Field(max_length=MAX_TOOLS)] | None = None
    tool_call_id: str | None = None

    def to_job(self) -> dict[str, Any]:
        """The message as a model is sent it."""
        # A developer's message is what a system's was called before.
        role = "system" if self.role == "developer" else self.role
        message: dict[str, Any] = {"role": role, "content": self.content}
        if self.reasoning_content is not None:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        return message
