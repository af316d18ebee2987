"""Answering a dialogue: with the model's own chat template, or as EVA was trained to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from martlet.engine.dialogue import answer_turns
from martlet.engine.messages import checked_messages, has_tools
from martlet.engine.reply import Splitter, ThoughtSplitter, ToolReplySplitter
from martlet.engine.request import Context, Request, SamplingParams, Suppress
from martlet.engine.tasks import TaskModel
from martlet.engine.tool_calls import CallSplitter
from martlet.engine.tools import ToolUse
from martlet.errors import ContextLengthError, UsageError
from martlet.tokenizers.chat_template import ChatPrompt, ChatTemplate
from martlet.tokenizers.tool_formats import ToolFormat

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
        tools: what the model may or must call; None = nothing.

    Raises:
        UsageError: a value of another type, or a limit that is no number of tokens.
    """

    thinking: bool | None = None
    max_input_tokens: int | None = None
    context_tokens: int | None = None
    is_bare: bool = False
    tools: ToolUse | None = None

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
        if self.is_bare and self.tools is not None:
            raise UsageError("a format leaves no room for calls of tools; leave out one of them")
        if self.must_call and self.thinking:
            raise UsageError("a reply that must call a tool has no thoughts; leave out thinking")

    @property
    def must_call(self) -> bool:
        """Whether the reply is to be the call of a tool and nothing else."""
        return self.tools is not None and bool(self.tools.forced)


@dataclass(frozen=True)
class ChatRequest:
    """The request for a reply, and where the reply begins: see ``ThoughtSplitter``.

    ``tools`` are those that it may call, and how it does; ``format`` is what it must keep to, which
    is left to the caller: see ``structured_constraint``.
    """

    request: Request
    begins: Literal["start", "thought", "answer"] = "answer"
    tools: tuple[ToolUse, ToolFormat] | None = None

    @property
    def format(self) -> dict[str, Any] | None:
        """The form of a call that the reply must be; None where it is free."""
        if self.tools is None or not self.tools[0].forced:
            return None
        use, form = self.tools
        return use.forced_json(form)

    def splitter(self) -> Splitter:
        """Tells the parts of the reply from each other; one for each text."""
        thoughts = ThoughtSplitter(self.begins)
        if self.tools is None:
            return thoughts
        use, form = self.tools
        is_open, names = bool(use.forced), use.names
        calls = CallSplitter(form, names, is_open=is_open, takes_many=use.takes_many)
        return ToolReplySplitter(thoughts, calls)


def chat(
    model: TaskModel,
    messages: Sequence[Mapping[str, Any]],
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
        return _without_template(model, messages, params, options)
    return _by_template(model, model.template, messages, params, options)


def _without_template(
    model: TaskModel,
    messages: Sequence[Mapping[str, Any]],
    params: SamplingParams,
    options: ChatOptions,
) -> ChatRequest:
    if options.tools is not None:
        raise _without_tools(model.name, "has no chat template")
    if options.thinking:
        raise UsageError(
            f"{model.name} has no switch for thinking: models of the family {model.family} "
            "do not think before they answer; leave thinking out"
        )
    return ChatRequest(answer_turns(model, messages, params, options.max_input_tokens))


def _by_template(
    model: TaskModel,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
    params: SamplingParams,
    options: ChatOptions,
) -> ChatRequest:
    is_bare = options.is_bare or options.must_call
    thinking = options.thinking
    if is_bare and template.has_switch:
        thinking = False
    checked = checked_messages(messages)
    form = _tool_format(model.name, template) if options.tools or has_tools(checked) else None
    asked = _Asked(model, template, thinking, options)
    prompt = _fitting_prompt(asked, checked, params)
    if is_bare and prompt.begins == "thought":
        raise UsageError(
            f"{model.name} always thinks before it answers, which leaves no room for a format; "
            "ask for plain text"
        )
    end_ids = model.end_ids | template.end_ids
    # A call that is forced has its mark before it already.
    marks = template.call_marks if options.tools and not options.must_call else {}
    request = Request(
        context=Context(prompt.token_ids),
        params=params,
        constraint=Suppress(model.suppressed(allowed=sorted(end_ids | marks.keys()))),
        eos_ids=end_ids,
        prompt_ids=prompt.token_ids,
        spelled=marks,
    )
    offered = (options.tools, form) if options.tools and form else None
    return ChatRequest(request, prompt.begins, offered)


def _tool_format(name: str, template: ChatTemplate) -> ToolFormat:
    if not template.takes_tools:
        raise _without_tools(name, "has a chat template that takes no tools")
    if template.tool_format is None:
        raise _without_tools(
            name,
            "calls tools in a form that is not known here; those of Hermes and Qwen, of Mistral "
            "and of Llama 3.1 are",
        )
    return template.tool_format


def _without_tools(name: str, reason: str) -> UsageError:
    return UsageError(f"{name} {reason}; leave tools out, or use another model")


@dataclass(frozen=True)
class _Asked:
    """How prompts are made of messages."""

    model: TaskModel
    template: ChatTemplate
    thinking: bool | None
    options: ChatOptions

    def prompt(self, messages: Sequence[Mapping[str, Any]]) -> ChatPrompt:
        options = self.options
        tools = options.tools.tools if options.tools else ()
        return self.template.prompt(messages, self.thinking, tools, is_call=options.must_call)


def _fitting_prompt(
    asked: _Asked,
    messages: Sequence[Mapping[str, Any]],
    params: SamplingParams,
) -> ChatPrompt:
    """The prompt with as many of the newest turns as fit."""
    options = asked.options
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
        what = "the last message and the tools have" if options.tools else "the last message has"
        raise ContextLengthError(
            f"{what} {len(prompt.token_ids):,} tokens in the model's chat template, "
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


def _cuts(messages: Sequence[Mapping[str, Any]]) -> tuple[int, list[int]]:
    """(messages of the system at the beginning, places where a dialogue may begin behind them)."""
    heads = next(i for i, message in enumerate(messages) if message["role"] != "system")
    later = [i for i in range(heads + 1, len(messages)) if messages[i]["role"] == "user"]
    return heads, [heads, *later]
