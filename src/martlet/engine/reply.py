"""The two parts of a reply: what a model thinks first, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from martlet.engine.generator import Generator
from martlet.engine.request import Request, Stats
from martlet.engine.text import TextStream

__all__ = ["ChatStream", "Reply", "ReplyPart", "ThoughtSplitter"]

_OPEN, _CLOSE = "<think>", "</think>"


class ReplyPart(NamedTuple):
    """A piece of a reply, never empty: of its thoughts, which come first, or of its answer."""

    kind: Literal["thought", "answer"]
    text: str


class Reply(str):
    """The answer of a model; ``thoughts`` is what it wrote before it, "" where it did not think."""

    thoughts: str

    def __new__(cls, answer: str, thoughts: str = "") -> Reply:
        """The answer as a string, with the thoughts beside it."""
        reply = super().__new__(cls, answer)
        reply.thoughts = thoughts
        return reply


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


class ChatStream(TextStream):
    """A reply as it comes: iterating gives pieces of the answer, ``parts`` those of both parts.

    Attributes:
        thoughts: what the model has thought so far; "" for one that does not think.
    """

    def __init__(
        self,
        generator: Generator,
        request: Request,
        splitter: ThoughtSplitter,
        on_finish: Callable[[Stats], None] = lambda _: None,
    ) -> None:
        super().__init__(generator, request, on_finish)
        self.thoughts = ""
        self._parts = self._split(splitter)

    def __next__(self) -> str:
        return next(part.text for part in self._parts if part.kind == "answer")

    def parts(self) -> Iterator[ReplyPart]:
        """The pieces with what they are; those that have been taken do not come again."""
        return self._parts

    def _split(self, splitter: ThoughtSplitter) -> Iterator[ReplyPart]:
        for text in self._pieces:
            yield from self._noted(splitter.push(text))
        yield from self._noted(splitter.flush())

    def _noted(self, parts: list[ReplyPart]) -> list[ReplyPart]:
        self.thoughts += "".join(part.text for part in parts if part.kind == "thought")
        return parts


def _num_held(text: str) -> int:
    """Characters at the end that may become the mark that closes thoughts."""
    longest = min(len(text), len(_CLOSE) - 1)
    return next((n for n in range(longest, 0, -1) if _CLOSE.startswith(text[-n:])), 0)
