"""Tools on their way from a request to a model, and their calls on the way back."""

from __future__ import annotations

import json
from typing import Any

from martlet.engine.tools import tool_use
from martlet.errors import UsageError
from martlet.server.failures import ApiError
from martlet.server.messages import CallDetails, ToolTask

__all__ = ["ollama_call", "openai_call", "tool_task"]


def tool_task(
    tools: list[Any] | None, choice: str | dict[str, Any] | None = None, takes_many: bool = True
) -> ToolTask | None:
    """What a model is told of tools; None where it shall call none.

    Raises:
        ApiError: 400; they or the choice are malformed.
    """
    param = "tools"
    try:
        tool_use(tools)
        param = "tool_choice"
        use = tool_use(tools, choice)
    except UsageError as error:
        raise ApiError(400, "invalid_value", str(error), param) from None
    if use is None:
        return None
    return {"tools": tools or [], "choice": choice, "takes_many": takes_many}


def openai_call(call: CallDetails, index: int | None = None) -> dict[str, Any]:
    """A call in OpenAI's words; in streams they are numbered."""
    function = {"name": call["name"], "arguments": call["arguments"]}
    numbered = {} if index is None else {"index": index}
    return {**numbered, "id": call["id"], "type": "function", "function": function}


def ollama_call(call: CallDetails) -> dict[str, Any]:
    """A call in Ollama's words, whose arguments are an object."""
    return {"function": {"name": call["name"], "arguments": json.loads(call["arguments"])}}
