"""What messages a chat template is given."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from martlet.engine.tools import TOOL_NAME, is_shallow
from martlet.errors import UsageError

__all__ = ["checked_messages", "has_tools"]

_ROLES = ("system", "user", "assistant", "tool")
_NEEDED = frozenset({"role", "content"})
# What an assistant thought, for templates that show it again; OpenAI's clients send it so.
_THOUGHTS = "reasoning_content"
_OTHERS = {"assistant": {_THOUGHTS, "tool_calls"}, "tool": {"tool_call_id"}}
_MOST_DEPTH = 64
_CALL_ID = re.compile(r"[a-zA-Z0-9_.:-]{1,128}")


def checked_messages(messages: object) -> list[dict[str, Any]]:
    """Messages that a template can be given, the last of them the user's or a tool's.

    Arguments of calls are objects in what comes back, and what a tool gave has the ``name`` of the
    tool: so templates know them.

    Raises:
        UsageError: they are no list of messages, one has a field or role that is not known, or
            calls of tools and what they gave do not belong together.
    """
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise UsageError(
            "messages must be a list of at least one message, "
            'each {"role": "system", "user" or "assistant", "content": text}'
        )
    checked = [_checked(number, message) for number, message in enumerate(messages, start=1)]
    if checked[-1]["role"] not in ("user", "tool"):
        raise UsageError(
            f"the last message has the role {checked[-1]['role']}; end with one from the user"
        )
    _match_calls(checked)
    return checked


def has_tools(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether tools were called in a dialogue."""
    return any("tool_calls" in message or message["role"] == "tool" for message in messages)


def _checked(number: int, message: object) -> dict[str, Any]:
    where = f"message {number}"
    if isinstance(message, Mapping) and message.get("tool_calls"):
        message = {**message, "content": message.get("content") or ""}
    if not isinstance(message, Mapping) or not set(message) >= _NEEDED:
        fields = sorted(map(str, message)) if isinstance(message, Mapping) else repr(message)
        raise UsageError(f"{where} must have the fields role and content, got {fields!s:.200}")
    role = message["role"]
    if role not in _ROLES:
        raise UsageError(f"{where} has the role {role!r:.40}; it must be {' or '.join(_ROLES)}")
    known = _NEEDED | _OTHERS.get(role, set())
    if odd := sorted(map(str, set(message) - known)):
        raise UsageError(
            f"{where} has the field {odd[0]!r:.40}; known for {role} are {', '.join(sorted(known))}"
        )
    for field in sorted(set(message) - {"tool_calls"}):
        if not isinstance(message[field], str):
            raise UsageError(f"the {field} of {where} is not a string; it must be text")
    checked: dict[str, Any] = {f: str(message[f]) for f in message if f != "tool_calls"}
    if message.get("tool_calls"):
        checked["tool_calls"] = _checked_calls(where, message["tool_calls"])
    return checked


def _checked_calls(where: str, calls: object) -> list[dict[str, Any]]:
    if isinstance(calls, str) or not isinstance(calls, Sequence):
        raise UsageError(f"the tool_calls of {where} are no list; they must be one")
    return [_checked_call(f"tool call {i} of {where}", call) for i, call in enumerate(calls, 1)]


def _checked_call(where: str, call: object) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(call, Mapping) or not isinstance(function, Mapping):
        raise UsageError(
            f'{where} must be {{"id": ..., "type": "function", "function": {{"name": ..., '
            '"arguments": JSON}}'
        )
    name, call_id = function.get("name"), call.get("id")
    if call.get("type", "function") != "function" or not _fits(TOOL_NAME, name):
        raise UsageError(f"{where} is no call of a function with a name; only functions are known")
    if not _fits(_CALL_ID, call_id):
        raise UsageError(
            f"the id of {where} is {call_id!r:.80}; it must be 1 to 128 letters, digits, "
            "underscores, dots, colons and hyphens"
        )
    arguments = _checked_arguments(where, function.get("arguments", {}))
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _checked_arguments(where: str, arguments: object) -> dict[str, Any]:
    try:
        given = json.loads(arguments) if isinstance(arguments, str) else arguments
        copy = json.loads(json.dumps(given, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        copy = None
    if not isinstance(copy, dict) or not is_shallow(copy, _MOST_DEPTH):
        raise UsageError(
            f"the arguments of {where} are no JSON of an object, or nested more than "
            f"{_MOST_DEPTH} deep; send them as the model gave them"
        )
    return copy


def _match_calls(messages: list[dict[str, Any]]) -> None:
    """Give what tools gave their names; each belongs to a call of the turn before."""
    open_calls: dict[str, str] = {}
    for number, message in enumerate(messages, start=1):
        if message["role"] != "tool":
            _require_answered(open_calls, f"before message {number}")
            calls = message.get("tool_calls", [])
            open_calls = {call["id"]: call["function"]["name"] for call in calls}
            if len(open_calls) < len(calls):
                raise UsageError(f"two tool calls of message {number} have the same id")
            continue
        call_id = message.get("tool_call_id")
        if call_id not in open_calls:
            raise UsageError(
                f"message {number} is of a tool, and its tool_call_id is {call_id!r:.80}, which no "
                "call has that is open; put it behind the assistant's message with that call"
            )
        message["name"] = open_calls.pop(call_id)
    _require_answered(open_calls, "at the end")


def _require_answered(open_calls: Mapping[str, str], where: str) -> None:
    for call_id in open_calls:
        raise UsageError(
            f"nothing was given for the tool call {call_id:.80} {where}; put a message of the role "
            "tool with that tool_call_id behind the call"
        )


def _fits(pattern: re.Pattern[str], text: object) -> bool:
    return isinstance(text, str) and pattern.fullmatch(text) is not None
