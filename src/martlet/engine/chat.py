"""Answering a dialogue: with the model's own chat template, or as EVA was trained to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from martlet.engine.dialogue import answer_turns
from martlet.engine.reply import ThoughtSplitter
from martlet.engine.request import Request, SamplingParams
from martlet.engine.tasks import TaskModel
from martlet.errors import UsageError

__all__ = ["ChatOptions", "ChatRequest", "chat"]


@dataclass(frozen=True)
class ChatOptions:
    """What can be said of a chat beside its messages and its sampling.

    Attributes:
        thinking: whether the model thinks before it answers; None = as its template does.
        max_input_tokens: tokens of the dialogue that are read at most; None = what the model, or
            its memory, can hold.

    Raises:
        UsageError: a value of another type, or a limit that is no number of tokens.
    """

    thinking: bool | None = None
    max_input_tokens: int | None = None

    def __post_init__(self) -> None:
        limit = self.max_input_tokens
        if limit is not None and (type(limit) is not int or limit < 1):
            raise UsageError(
                f"max_input_tokens is {limit!r:.40}; it must be a whole number from 1 on, "
                "or None for what the model was trained to read"
            )
        if self.thinking is not None and type(self.thinking) is not bool:
            raise UsageError(
                f"thinking is {self.thinking!r:.40}; it must be true or false, or None for what "
                "the model does by itself"
            )


@dataclass(frozen=True)
class ChatRequest:
    """The request for a reply, and where the reply begins: see ``ThoughtSplitter``."""

    request: Request
    begins: Literal["start", "thought", "answer"] = "answer"

    def splitter(self) -> ThoughtSplitter:
        """Tells the two parts of the reply from each other; one for each text."""
        return ThoughtSplitter(self.begins)


def chat(
    model: TaskModel,
    messages: Sequence[Mapping[str, str]],
    params: SamplingParams,
    options: ChatOptions,
) -> ChatRequest:
    """The reply to the last of some messages, each ``{"role": ..., "content": ...}``.

    The oldest turns are left out, as a whole, where not all fit.

    Raises:
        UsageError: the model cannot chat, or not with these messages or options.
        ContextLengthError: the last message alone does not fit.
    """
    model.require("chat")
    if options.thinking is not None:
        raise UsageError(
            f"{model.name} has no switch for thinking: models of the family {model.family} do not "
            "think before they answer; leave thinking out"
        )
    return ChatRequest(answer_turns(model, messages, params, options.max_input_tokens))
