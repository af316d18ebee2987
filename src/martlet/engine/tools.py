"""What tools a model is offered, and what it shall do with them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from martlet.errors import UsageError
from martlet.tokenizers.tool_formats import ToolFormat

__all__ = ["MAX_TOOLS", "MAX_TOOLS_BYTES", "TOOL_NAME", "ToolUse", "is_shallow", "tool_use"]

MAX_TOOLS = 128
MAX_TOOLS_BYTES = 64 << 10
"""Of all tools of a request together, as JSON."""

TOOL_NAME = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_MOST_DEPTH = 24  # schemas of calls are some levels deeper
_WORDS = ("auto", "none", "required")
_FIELDS = ("name", "description", "parameters", "strict")


@dataclass(frozen=True)
class ToolUse:
    """Tools for one reply; see ``tool_use``.

    Attributes:
        tools: as templates are given them: {"type": "function", "function": {...}}.
        forced: names of the tools of which the reply must call one; none where it need not.
        takes_many: whether a reply may call more than one.
    """

    tools: tuple[dict[str, Any], ...]
    forced: tuple[str, ...] = ()
    takes_many: bool = True

    @property
    def names(self) -> frozenset[str]:
        """What the tools are called."""
        return frozenset(tool["function"]["name"] for tool in self.tools)

    def forced_json(self, format: ToolFormat) -> dict[str, Any]:
        """The format ("json_schema") of a call of one of the forced tools.

        It is what stands behind the opening mark. Schemas of arguments stand under $defs, and what
        they refer to is looked for there.
        """
        assert self.forced
        schemas: dict[str, Any] = {}
        calls = []
        for tool in self.tools:
            function = tool["function"]
            if function["name"] not in self.forced:
                continue
            place = f"tool{len(schemas)}"
            own = _moved(function.get("parameters", {}), f"#/$defs/{place}")
            schemas[place] = {"type": "object", **own}
            wanted = {
                "name": {"const": function["name"]},
                format.arguments: {"$ref": f"#/$defs/{place}"},
            }
            calls.append(
                {
                    "type": "object",
                    "properties": wanted,
                    "required": list(wanted),
                    "additionalProperties": False,
                }
            )
        call: dict[str, Any] = {"anyOf": calls}
        if format.is_list:
            most = {} if self.takes_many else {"maxItems": 1}
            call = {"type": "array", "items": call, "minItems": 1, **most}
        return {"type": "json_schema", "schema": {**call, "$defs": schemas}}


def tool_use(tools: object, choice: object = None, takes_many: bool = True) -> ToolUse | None:
    """What a request says of tools, checked; None where the reply shall call none.

    Args:
        tools: a list of {"type": "function", "function": {"name": ..., "description": ...,
            "parameters": JSON schema of an object}}; None = no tools.
        choice: "auto" lets the model decide (also None), "none" and "required" do not;
            {"type": "function", "function": {"name": ...}} is the tool that must be called.
        takes_many: whether a reply may call more than one.

    Raises:
        UsageError: anything else, too many or too large tools, or a name that two of them have.
    """
    checked = _checked_tools(tools)
    names = [tool["function"]["name"] for tool in checked]
    forced = _forced(choice, names)
    if not checked or choice == "none":
        return None
    return ToolUse(tuple(checked), forced, takes_many)


def _forced(choice: object, names: list[str]) -> tuple[str, ...]:
    if choice is None or (isinstance(choice, str) and choice in ("auto", "none")):
        return ()
    if not names:
        _refuse(
            f"tool_choice is {choice!r:.60}, but there are no tools; give tools, or leave it out"
        )
    if choice == "required":
        return tuple(names)
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(choice, Mapping) or choice.get("type") != "function" or name is None:
        _refuse(
            f"tool_choice is {choice!r:.60}; it must be {', '.join(_WORDS)} or "
            '{"type": "function", "function": {"name": ...}}'
        )
    if name not in names:
        _refuse(f"tool_choice names the tool {name!r:.80}, which is not among tools; offer it")
    return (str(name),)


def _checked_tools(tools: object) -> list[dict[str, Any]]:
    if tools is None:
        return []
    if isinstance(tools, str) or not isinstance(tools, Sequence):
        _refuse(f"tools is of type {type(tools).__name__}; it must be a list of functions")
    if len(tools) > MAX_TOOLS:
        _refuse(f"there are {len(tools):,} tools; at most {MAX_TOOLS} are allowed: offer fewer")
    checked = [_checked_tool(f"tool {number}", tool) for number, tool in enumerate(tools, start=1)]
    _require_small(checked)
    names = [tool["function"]["name"] for tool in checked]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        _refuse(f"two tools are called {twice[0]}; give each a name of its own")
    copies: list[dict[str, Any]] = json.loads(json.dumps(checked))
    return copies


def _checked_tool(where: str, tool: object) -> dict[str, Any]:
    if not isinstance(tool, Mapping) or tool.get("type") != "function":
        _refuse(f'{where} has no type "function"; only functions are supported')
    function = tool.get("function")
    if set(tool) - {"type", "function"} or not isinstance(function, Mapping):
        _refuse(f'{where} must be {{"type": "function", "function": {{...}}}} and no more')
    name, given = function.get("name"), {k: v for k, v in function.items() if v is not None}
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        _refuse(
            f"the name of {where} is {name!r:.80}; it must be 1 to 64 letters, digits, "
            "underscores, dots and hyphens"
        )
    if odd := sorted(map(str, set(given) - set(_FIELDS))):
        _refuse(f"the tool {name} has the field {odd[0]!r:.40}; known are {', '.join(_FIELDS)}")
    if not isinstance(given.get("description", ""), str):
        _refuse(f"the description of the tool {name} is no text; it must be")
    if type(given.pop("strict", False)) is not bool:
        _refuse(f"strict of the tool {name} is neither true nor false; it must be")
    parameters = given.get("parameters", {})
    if not isinstance(parameters, dict) or parameters.get("type", "object") != "object":
        _refuse(
            f"the parameters of the tool {name} are no JSON schema of an object; "
            'give {"type": "object", "properties": {...}}'
        )
    return {"type": "function", "function": given}


def is_shallow(value: Any, most_depth: int) -> bool:
    """Whether lists and objects are nested at most so deep; found without recursion."""
    level = [value]
    for _ in range(most_depth + 1):
        level = [
            inner
            for part in level
            for inner in (part.values() if isinstance(part, dict) else part)
            if isinstance(inner, dict | list)
        ]
        if len(level) > MAX_TOOLS_BYTES:
            return False
    return not level


def _require_small(tools: list[dict[str, Any]]) -> None:
    if not is_shallow([tool["function"].get("parameters", {}) for tool in tools], _MOST_DEPTH):
        _refuse(
            f"parameters of tools are nested more than {_MOST_DEPTH} deep, or have no end; "
            "simplify them"
        )
    try:
        num_bytes = len(json.dumps(tools, ensure_ascii=False, allow_nan=False).encode())
    except (TypeError, ValueError) as error:  # a set, an infinity, half a surrogate pair
        _refuse(f"tools are not JSON: {error!s:.80}")
    if num_bytes > MAX_TOOLS_BYTES:
        _refuse(
            f"tools have {num_bytes:,} bytes of JSON; at most {MAX_TOOLS_BYTES:,} are allowed: "
            "offer fewer, or describe them more briefly"
        )


def _moved(schema: Any, place: str) -> Any:
    """A schema that stands at another place than at the root, its references with it."""
    if isinstance(schema, list):
        return [_moved(value, place) for value in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {name: _moved(value, place) for name, value in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved


def _refuse(message: str) -> NoReturn:
    raise UsageError(message)
