"""Tells the calls of tools in an answer from its text, while it comes in pieces."""

from __future__ import annotations

import json
import secrets
import string
from collections.abc import Collection
from typing import Any, Literal, NamedTuple, NoReturn

from martlet.tokenizers.tool_formats import ToolFormat

__all__ = ["CallSplitter", "ToolCall"]

_ID_CHARACTERS = string.ascii_letters + string.digits
_NUM_ID_CHARACTERS = 9  # what templates of Mistral's take
_MOST_DEPTH = 64


class ToolCall(NamedTuple):
    """A tool that a model wants called; ``arguments`` is the JSON of an object, as text."""

    id: str
    name: str
    arguments: str

    def as_dict(self) -> dict[str, Any]:
        """The call as messages have it."""
        function = {"name": self.name, "arguments": self.arguments}
        return {"id": self.id, "type": "function", "function": function}


class CallSplitter:
    """Takes calls out of an answer.

    What begins like a call but is none - its JSON is broken or cut off, or no such tool was
    offered - is text. The marks of calls and white space around them belong to neither. How the
    answer is cut into pieces does not matter.

    Args:
        format: how the model calls tools.
        names: of the tools that it was offered.
        is_open: the prompt ends with the opening mark.
        takes_many: whether more than one call is wanted; if not, the answer ends with the first.
    """

    def __init__(
        self,
        format: ToolFormat,
        names: Collection[str],
        *,
        is_open: bool = False,
        takes_many: bool = True,
    ) -> None:
        self._format = format
        self._names = names
        self._takes_many = takes_many
        self._held = ""  # may be, or be part of, a call and its marks
        self._strips = False  # white space is left out until there is text
        self._state: Literal["start", "text", "call", "close", "plain", "done"] = "text"
        self._value = 0  # where the JSON begins in what is held, at the earliest
        self._json = _JsonEnd()
        self._told: list[str | ToolCall] = []
        if not format.opening:
            self._state = "start"
        if is_open and format.opening:
            self._state = "call"

    def push(self, text: str) -> list[str | ToolCall]:
        """The text and the calls that can be told now; no text is empty."""
        self._held += text
        steps = {
            "start": self._start,
            "text": self._text,
            "call": self._call,
            "close": self._close,
            "plain": self._plain,
            "done": self._drop,
        }
        while steps[self._state]():
            pass
        return self._take_told()

    def flush(self) -> list[str | ToolCall]:
        """What was held back, now that no more text comes."""
        if self._state in ("close", "done"):  # part of the mark behind a call
            self._held = ""
        self._tell(self._held)
        self._held = ""
        return self._take_told()

    # Each step does what it can with what is held; False where more text must come first.

    def _start(self) -> bool:
        """Where a call is the whole answer, its first character decides."""
        begun = self._held.lstrip()
        if begun:
            is_call = begun.startswith("{")
            self._state, self._value = ("call", 0) if is_call else ("plain", 0)
        return bool(begun)

    def _text(self) -> bool:
        opening = self._format.opening
        text, mark, rest = self._held.partition(opening)
        if not mark:
            text = text[: len(text) - _num_held(text, opening)]
        told = text.rstrip()  # white space before a mark belongs to it
        self._tell(told)
        self._held = self._held[len(told) :]
        if mark:
            self._state, self._value = "call", len(self._held) - len(rest)
        return bool(mark)

    def _call(self) -> bool:
        lead = self._held[self._value :].lstrip()
        if not lead:
            return False
        start = len(self._held) - len(lead)
        if not lead.startswith(("{", "[") if self._format.is_list else "{"):
            self._give_back(self._value)
            return True
        end = self._json.scan(self._held, start)
        if end is None:
            return False
        self._json = _JsonEnd()
        calls = self._calls(self._held[start:end])
        if calls is None:
            self._give_back(end)
            return True
        self._held = self._held[end:]
        self._told += calls
        self._state, self._strips = "close" if self._takes_many else "done", True
        return True

    def _close(self) -> bool:
        closing = self._format.closing
        self._held = self._held.lstrip()
        if len(self._held) < len(closing) and closing.startswith(self._held):
            return False
        self._held = self._held.removeprefix(closing)
        self._state = "text" if self._format.opening else "plain"
        return True

    def _plain(self) -> bool:
        self._tell(self._held)
        self._held = ""
        return False

    def _drop(self) -> bool:
        self._held = ""
        return False

    def _give_back(self, end: int) -> None:
        """What is held up to there was no call."""
        self._tell(self._held[:end])
        self._held = self._held[end:]
        self._state = "text" if self._format.opening else "plain"

    def _tell(self, text: str) -> None:
        if self._strips:
            text = text.lstrip()
        if text:
            self._strips = False
            self._told.append(text)

    def _take_told(self) -> list[str | ToolCall]:
        told, self._told = self._told, []
        return told

    def _calls(self, text: str) -> list[ToolCall] | None:
        """The calls that some JSON stands for; None where it is anything else."""
        try:
            value = json.loads(text, parse_constant=_refuse, parse_float=_finite)
            calls = [self._one(each) for each in (value if isinstance(value, list) else [value])]
        except ValueError:
            return None
        known = [call for call in calls if call is not None]
        if not calls or len(known) < len(calls):
            return None
        return known if self._takes_many else known[:1]

    def _one(self, value: Any) -> ToolCall | None:
        if not isinstance(value, dict):
            return None
        name, arguments = value.get("name"), value.get(self._format.arguments, {})
        if not isinstance(name, str) or name not in self._names or not isinstance(arguments, dict):
            return None
        spelled = json.dumps(arguments, ensure_ascii=False)
        spelled.encode()  # half a surrogate pair is no text
        call_id = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(_NUM_ID_CHARACTERS))
        return ToolCall(call_id, name, spelled)


class _JsonEnd:
    """Finds where a JSON object or list ends, looking at every character once."""

    def __init__(self) -> None:
        self._depth = 0
        self._is_text = False
        self._is_escaped = False
        self._seen = 0

    def scan(self, text: str, start: int) -> int | None:
        """The end of the value that begins at ``start``; None while it has not come.

        ``text`` may have become longer since the last time. A value that is nested too deeply ends
        where it is, so that nothing deep is ever parsed.
        """
        for place in range(start + self._seen, len(text)):
            self._seen += 1
            character = text[place]
            if self._is_text:
                self._in_text(character)
            elif character == '"':
                self._is_text = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
            if not 0 < self._depth <= _MOST_DEPTH:
                return place + 1
        return None

    def _in_text(self, character: str) -> None:
        if self._is_escaped:
            self._is_escaped = False
        elif character == "\\":
            self._is_escaped = True
        elif character == '"':
            self._is_text = False


def _num_held(text: str, mark: str) -> int:
    """Characters at the end that may become a mark."""
    longest = min(len(text), len(mark) - 1)
    return next((n for n in range(longest, 0, -1) if mark.startswith(text[-n:])), 0)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _finite(number: str) -> float:
    value = float(number)
    if abs(value) == float("inf"):
        raise ValueError(f"{number} is too large")
    return value
