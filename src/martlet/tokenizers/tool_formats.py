"""The forms in which models call tools, told by the text of their chat templates."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["TOOL_FORMATS", "ToolFormat", "tool_format"]


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes that it calls a tool: a JSON object between two marks.

    Attributes:
        name: who began with it.
        opening: stands before a call; "" where a call is the whole answer.
        closing: stands behind one; "" where nothing does.
        arguments: the key of the arguments, beside "name".
        is_list: the marks hold a list of all calls, not each call for itself.
        lead: what the model writes between the opening mark and the JSON, tokens of its own.
    """

    name: str
    opening: str
    closing: str
    arguments: str
    is_list: bool
    lead: str


TOOL_FORMATS = {
    "hermes": ToolFormat("hermes", "<tool_call>", "</tool_call>", "arguments", False, "\n"),
    "mistral": ToolFormat("mistral", "[TOOL_CALLS]", "", "arguments", True, ""),
    "llama": ToolFormat("llama", "", "", "parameters", False, ""),
}
"""By name: that of Hermes and Qwen, of Mistral until 2024, of Llama 3.1 and later."""

# What other forms write between or beside the same marks.
_OTHERS = ("<function=", "<arg_key>", "[ARGS]", "<tool_calls>")
# How a template shows its model a call, which may be in several pieces of text (\0 between them).
_SHOWN = {
    "mistral": re.compile(r"\[TOOL_CALLS\] ?\["),
    "hermes": re.compile(r'<tool_call>[\s\0]*\{[\s\0]*"name": .*"arguments": .*</tool_call>', re.S),
    "llama": re.compile(r'\{"name": [^{}"]*"parameters": '),
}


def tool_format(literals: Iterable[str]) -> ToolFormat | None:
    """The form that a template shows its model, None for one that is not known here.

    ``literals`` is the text that stands in the source of the template, piece by piece.
    """
    text = "\0".join(literals)
    if any(other in text for other in _OTHERS):
        return None
    return next((TOOL_FORMATS[name] for name, form in _SHOWN.items() if form.search(text)), None)
