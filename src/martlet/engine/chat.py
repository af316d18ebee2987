"""Answering a dialogue: with the model's own chat template, or as EVA was trained to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from martlet.engine.dialogue import answer_turns
from martlet.engine.messages import checked_messages
from martlet.engine.reply import ThoughtSplitter
from martlet.engine.request import Context, Request, SamplingParams, Suppress
from martlet.engine.tasks import TaskModel
from martlet.errors import ContextLengthError, UsageError
from martlet.tokenizers.chat_template import ChatPrompt, ChatTemplate

__all__ = ["ChatOptions", "ChatRequest", "chat"]


@dataclass(frozen=True)
class ChatOptions:
    """What can be said of a chat beside its messages and its sampling.

    Attributes:
        thinking: whether the model thinks before it answers; None = as its template does.
        max_input_tokens: tokens of the dialogue that are read at most; None = what the model, or
            its memory, can hold.
        context_tokens: tokens that there is memory for, the reply included; None = no such limit.
        is_bare: the reply is to be the answer alone, as where it must be JSON.

    Raises:
        UsageError: a value of another type, or a limit that is no number of tokens.
    """

    thinking: bool | None = None
    max_input_tokens: int | None = None
    context_tokens: int | None = None
    is_bare: bool = False

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
        if self.is_bare and self.thinking:
            raise UsageError("a format leaves no room for thoughts; leave out thinking, or format")


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

    The oldest turns are left out, as a whole, where not all fit; what the system says stays. Some
    room is kept for the reply: what it may have, but no more than a quarter of all.

    Raises:
        UsageError: the model cannot chat, or not with these messages or options.
        ContextLengthError: the last message alone does not fit.
    """
    model.require("chat")
    if model.template is None:
        if options.thinking:
            raise UsageError(
                f"{model.name} has no switch for thinking: models of the family {model.family} "
                "do not think before they answer; leave thinking out"
            )
        return ChatRequest(answer_turns(model, messages, params, options.max_input_tokens))
    thinking = options.thinking
    if options.is_bare and model.template.has_switch:
        thinking = False
    asked = _Asked(model, model.template, thinking)
    prompt = _fitting_prompt(asked, checked_messages(messages), params, options)
    if options.is_bare and prompt.begins == "thought":
        raise UsageError(
            f"{model.name} always thinks before it answers, which leaves no room for a format; "
            "ask for plain text"
        )
    end_ids = model.end_ids | model.template.end_ids
    request = Request(
        context=Context(prompt.token_ids),
        params=params,
        constraint=Suppress(model.suppressed(allowed=sorted(end_ids))),
        eos_ids=end_ids,
        prompt_ids=prompt.token_ids,
    )
    return ChatRequest(request, prompt.begins)


@dataclass(frozen=True)
class _Asked:
    """How prompts are made of messages."""

    model: TaskModel
    template: ChatTemplate
    thinking: bool | None

    def prompt(self, messages: Sequence[Mapping[str, str]]) -> ChatPrompt:
        return self.template.prompt(messages, self.thinking)


def _fitting_prompt(
    asked: _Asked,
    messages: Sequence[Mapping[str, str]],
    params: SamplingParams,
    options: ChatOptions,
) -> ChatPrompt:
    """The prompt with as many of the newest turns as fit."""
    limit_tokens = _limit_tokens(asked.model, options)
    prompt = asked.prompt(messages)
    if limit_tokens is None:
        return prompt
    room_tokens = 0 if options.max_input_tokens else min(params.max_tokens, limit_tokens // 4)
    if len(prompt.token_ids) <= limit_tokens - room_tokens:
        return prompt
    heads, starts = _cuts(messages)
    fitting: ChatPrompt | None = None
    low, high = 1, len(starts) - 1  # starts[0] is the whole dialogue
    while low <= high:
        middle = (low + high) // 2
        prompt = asked.prompt([*messages[:heads], *messages[starts[middle] :]])
        if len(prompt.token_ids) <= limit_tokens - room_tokens:
            fitting, high = prompt, middle - 1
        else:
            low = middle + 1
    if fitting is not None:
        return fitting
    # Only the last turn is left, which may take the room of the reply as well.
    if len(prompt.token_ids) > limit_tokens:
        raise ContextLengthError(
            f"the last message has {len(prompt.token_ids):,} tokens in the model's chat template, "
            f"and {asked.model.name} reads at most {limit_tokens:,}; use a shorter message"
        )
    return prompt


def _limit_tokens(model: TaskModel, options: ChatOptions) -> int | None:
    """What a prompt may have; one place is for the reply."""
    positions = model.generator.architecture.max_positions
    limits = [
        options.max_input_tokens,
        None if options.context_tokens is None else options.context_tokens - 1,
        None if positions is None else positions - 1,
    ]
    return min((limit for limit in limits if limit is not None), default=None)


def _cuts(messages: Sequence[Mapping[str, str]]) -> tuple[int, list[int]]:
    """(messages of the system at the beginning, places where a dialogue may begin behind them)."""
    heads = next(i for i, message in enumerate(messages) if message["role"] != "system")
    later = [i for i in range(heads + 1, len(messages)) if messages[i]["role"] == "user"]
    return heads, [heads, *later]
