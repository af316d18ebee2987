"""The two parts of a reply: what a model thinks first, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

from martlet.engine.generator import Generator
from martlet.engine.request import Request, Stats
from martlet.engine.text import TextStream
from martlet.engine.tool_calls import CallSplitter, ToolCall

__all__ = [
    "CallPart",
    "ChatStream",
    "Reply",
    "ReplyPart",
    "Splitter",
    "ThoughtSplitter",
    "ToolReplySplitter",
]

_OPEN, _CLOSE = "<think>", "</think>"


class ReplyPart(NamedTuple):
    """A piece of a reply: of its thoughts, which come first, of its answer, or a call of a tool.

    The text of a call is empty, no other is.
    """

    kind: Literal["thought", "answer", "call"]
    text: str


class CallPart(ReplyPart):
    """The call of a tool, a part without text."""

    call: ToolCall

    def __new__(cls, call: ToolCall) -> CallPart:
        """The part for a call."""
        part = super().__new__(cls, "call", "")
        part.call = call
        return part


class Reply(str):
    """The answer of a model; ``thoughts`` is what it wrote before it, "" where it did not think.

    ``tool_calls`` are the tools that it wants called, in order.
    """

    thoughts: str
    tool_calls: tuple[ToolCall, ...]

    def __new__(cls, answer: str, thoughts: str = "", tool_calls: Sequence[ToolCall] = ()) -> Reply:
        """The answer as a string, with the thoughts and the calls beside it."""
        reply = super().__new__(cls, answer)
        reply.thoughts = thoughts
        reply.tool_calls = tuple(tool_calls)
        return reply


class Splitter(Protocol):
    """Tells the parts of one reply from each other, while it comes in pieces."""

    def push(self, text: str) -> list[ReplyPart]:
        """The parts that can be told now."""
        ...

    def flush(self) -> list[ReplyPart]:
        """What was held back, now that no more text comes."""
        ...


class ThoughtSplitter:
    """Tells the thoughts of a reply from its answer, while it comes in pieces.

    Thoughts stand between <think> and </think> where a reply begins; what stands there later is
    text. The marks themselves and white space around the thoughts belong to neither part. How the
    text is cut into pieces does not matter.

    Args:
        state: "thought" where the prompt ends with <think>, so that the reply begins inside;
            "start" where the reply may begin with it; "answer" for a model that does not think.
    """

    def __init__(self, state: Literal["start", "thought", "answer"]) -> None:
        self._state = state
        self._held = ""  # may be part of a mark, or white space that may end a part
        self._strips = state != "answer"  # white space is left out until a part has text

    def push(self, text: str) -> list[ReplyPart]:
        """The parts that can be told now."""
        self._held += text
        parts: list[ReplyPart] = []
        while self._state != "answer" and self._advance(parts):
            pass
        if self._state == "answer":
            self._tell("answer", self._held, parts)
            self._held = ""
        return parts

    def flush(self) -> list[ReplyPart]:
        """What was held back, now that no more text comes."""
        parts: list[ReplyPart] = []
        if self._state == "thought":  # it ended, by a limit, before it had thought it over
            self._tell("thought", self._held.rstrip(), parts)
        else:
            self._strips = False  # a reply of white space alone is what it is
            self._tell("answer", self._held, parts)
        self._held = ""
        return parts

    def _advance(self, parts: list[ReplyPart]) -> bool:
        """Go on to the next state; False where more text must come first."""
        if self._state == "start":
            begun = self._held.lstrip()
            if begun.startswith(_OPEN):
                self._state, self._held = "thought", begun[len(_OPEN) :]
                return True
            if not _OPEN.startswith(begun):
                self._state, self._strips = "answer", False
            return False
        thought, mark, rest = self._held.partition(_CLOSE)
        if mark:
            self._tell("thought", thought.rstrip(), parts)
            self._state, self._held, self._strips = "answer", rest, True
            return False
        told = self._held[: len(self._held) - _num_held(self._held)].rstrip()
        self._tell("thought", told, parts)
        self._held = self._held[len(told) :]
        return False

    def _tell(self, kind: Literal["thought", "answer"], text: str, parts: list[ReplyPart]) -> None:
        if self._strips:
            text = text.lstrip()
        if text:
            self._strips = False
            parts.append(ReplyPart(kind, text))


class ToolReplySplitter:
    """Tells calls of tools from what else an answer says, behind the thoughts."""

    def __init__(self, thoughts: ThoughtSplitter, calls: CallSplitter) -> None:
        self._thoughts = thoughts
        self._calls = calls

    def push(self, text: str) -> list[ReplyPart]:
        """The parts that can be told now."""
        return self._split(self._thoughts.push(text))

    def flush(self) -> list[ReplyPart]:
        """What was held back, now that no more text comes."""
        return [*self._split(self._thoughts.flush()), *map(_part, self._calls.flush())]

    def _split(self, parts: list[ReplyPart]) -> list[ReplyPart]:
        split: list[ReplyPart] = []
        for part in parts:
            split += [part] if part.kind == "thought" else map(_part, self._calls.push(part.text))
        return split


class ChatStream(TextStream):
    """A reply as it comes: iterating gives pieces of the answer, ``parts`` those of all parts.

    Attributes:
        thoughts: what the model has thought so far; "" for one that does not think.
        tool_calls: the tools that it wants called, as far as it has come.
    """

    def __init__(
        self,
        generator: Generator,
        request: Request,
        splitter: Splitter,
        on_finish: Callable[[Stats], None] = lambda _: None,
    ) -> None:
        super().__init__(generator, request, on_finish)
        self.thoughts = ""
        self.tool_calls: list[ToolCall] = []
        self._parts = self._split(splitter)

    def __next__(self) -> str:
        return next(part.text for part in self._parts if part.kind == "answer")

    def parts(self) -> Iterator[ReplyPart]:
        """The pieces with what they are; those that have been taken do not come again."""
        return self._parts

    def _split(self, splitter: Splitter) -> Iterator[ReplyPart]:
        for text in self._pieces:
            yield from self._noted(splitter.push(text))
        yield from self._noted(splitter.flush())

    def _noted(self, parts: list[ReplyPart]) -> list[ReplyPart]:
        self.thoughts += "".join(part.text for part in parts if part.kind == "thought")
        self.tool_calls += [part.call for part in parts if isinstance(part, CallPart)]
        return parts


def _part(told: str | ToolCall) -> ReplyPart:
    return ReplyPart("answer", told) if isinstance(told, str) else CallPart(told)


def _num_held(text: str) -> int:
    """Characters at the end that may become the mark that closes thoughts."""
    longest = min(len(text), len(_CLOSE) - 1)
    return next((n for n in range(longest, 0, -1) if _CLOSE.startswith(text[-n:])), 0)
