"""Chat templates: from messages to the tokens that ask a model for its reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, Protocol

from martlet.errors import UsageError
from martlet.tokenizers.control_names import TemplateNames
from martlet.tokenizers.template_process import TemplateFacts, TemplateProcess
from martlet.tokenizers.tokenizer import SpecialTokens
from martlet.tokenizers.tool_formats import ToolFormat, tool_format
from martlet.tokenizers.vocabulary import well_formed

__all__ = ["ChatPrompt", "ChatTemplate", "TemplateTokenizer"]

_OPEN, _CLOSE = "<think>", "</think>"
# What templates call their switch.
_SWITCHES = ("enable_thinking", "thinking")
_SAID = "martletanswer"
# Words of tools that templates look for, or compare with, and that spell nothing by themselves.
_TOOL_WORDS = frozenset(
    {"id", "type", "function", "name", "description", "parameters", "arguments", "properties"}
    | {"required", "items", "enum", "anyOf", "default", "additionalProperties", "$defs", "$ref"}
    | {"string", "integer", "number", "boolean", "object", "array", "null"}
)


class TemplateTokenizer(Protocol):
    """A tokenizer whose control tokens a template can spell; see ``HuggingFaceTokenizer``."""

    special: SpecialTokens

    @property
    def has_thought_marks(self) -> bool:
        """Whether <think> is a token."""
        ...

    def template_names(self, literals: Sequence[str]) -> TemplateNames:
        """The names that a template may mean, given the text that stands in its source."""
        ...

    def encode_spelled(self, text: str, names: TemplateNames) -> list[int]:
        """The ids of what a template wrote."""
        ...


@dataclass(frozen=True)
class ChatPrompt:
    """What a model reads before a reply, and whether that begins among its thoughts.

    ``begins`` is "thought" where the prompt opens them, "start" where the model may do that
    itself, "answer" where there are none.
    """

    token_ids: tuple[int, ...]
    begins: Literal["start", "thought", "answer"]


class ChatTemplate:
    """The template of a model, in Jinja, rendered in a process that cannot do any harm.

    The tokens are those of the whole text at once, as transformers' apply_chat_template gives them.
    But what stands in messages is text: where it spells a control token, it becomes the tokens of
    the spelling.

    Args:
        source: the template.
        tokenizer: the model's.
        special_tokens: what the template may name: "bos_token", "eos_token" and their like.
        name: the model's, for messages.

    Raises:
        ModelFileError: the source is too long for a template. Whether it is valid turns out when it
            is first used.
    """

    def __init__(
        self,
        source: str,
        tokenizer: TemplateTokenizer,
        special_tokens: Mapping[str, str],
        name: str,
    ) -> None:
        self._process = TemplateProcess(source, name)
        self._tokenizer = tokenizer
        self._special_tokens = dict(special_tokens)
        self._name = name

    @property
    def has_switch(self) -> bool:
        """Whether thinking can be turned on or off.

        Raises:
            ModelFileError: the template cannot be used.
        """
        return self._switch is not None

    @cached_property
    def takes_system(self) -> bool:
        """Whether a dialogue may begin with what the system says.

        Raises:
            ModelFileError: the template cannot be used.
        """
        turns = [("system", _SAID), ("user", "a")]
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            return _SAID in self._render(messages, None, add_generation_prompt=True)
        except UsageError:
            return False

    def prompt(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        is_call: bool = False,
    ) -> ChatPrompt:
        """What asks for the reply to some messages.

        Args:
            messages: each with a role and content; those of the assistant may have
                ``reasoning_content``, of which the template takes what it wants, and
                ``tool_calls``, those of a tool ``name`` and ``tool_call_id``.
            thinking: whether the model shall think first; None = as the template does. False
                asks nothing of a model that never thinks.
            tools: what the model may call, in OpenAI's words; needs a ``tool_format``.
            is_call: the reply shall be a call: the prompt ends with the mark that opens one.

        Raises:
            UsageError: the template refuses the messages, or has no switch for thinking.
            ModelFileError: the template cannot be used.
        """
        text = self._render(messages, thinking, tools, add_generation_prompt=True)
        begins = self._beginning(text)
        if is_call:
            assert self.tool_format is not None
            text += self.tool_format.opening + self.tool_format.lead
        return ChatPrompt(tuple(self._tokenizer.encode_spelled(text, self._names)), begins)

    @cached_property
    def tool_format(self) -> ToolFormat | None:
        """How the model calls tools; None where the template takes none, or in an unknown form.

        Raises:
            ModelFileError: the template cannot be used.
        """
        return tool_format(self._facts.literals) if self.takes_tools else None

    @property
    def takes_tools(self) -> bool:
        """Whether the template looks for tools, in whatever form.

        Raises:
            ModelFileError: the template cannot be used.
        """
        return "tools" in self._facts.variables

    @cached_property
    def call_marks(self) -> dict[int, str]:
        """Control tokens that stand around calls, which is where their names are told as text.

        Raises:
            ModelFileError: the template cannot be used.
        """
        form, control = self.tool_format, self._tokenizer.special.control_ids()
        marks: dict[int, str] = {}
        for mark in () if form is None else (form.opening, form.closing):
            token_ids = self._tokenizer.encode_spelled(mark, self._names)
            if len(token_ids) == 1 and token_ids[0] in control:
                marks[token_ids[0]] = mark
        return marks

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """The control token that the template puts behind an answer, empty where there is none.

        Raises:
            ModelFileError: the template cannot be used.
        """
        turns = [("user", "a"), ("assistant", _SAID), ("user", "b")]
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text = self._render(messages, None, add_generation_prompt=False)
        except UsageError:  # a template that takes nothing of the kind
            return frozenset()
        behind = text.rpartition(_SAID)[2].lstrip()
        token_ids = self._tokenizer.encode_spelled(behind, self._names)
        control = self._tokenizer.special.control_ids()
        token = next((i for i in token_ids[:1] if i in control), None)
        return frozenset() if token is None else frozenset({token})

    @cached_property
    def _facts(self) -> TemplateFacts:
        return self._process.facts()

    @cached_property
    def _names(self) -> TemplateNames:
        return self._tokenizer.template_names(self._facts.literals)

    @cached_property
    def _switch(self) -> str | None:
        return next((name for name in _SWITCHES if name in self._facts.variables), None)

    @cached_property
    def thinks(self) -> bool:
        """Whether its replies may begin with thoughts.

        Raises:
            ModelFileError: the template cannot be used.
        """
        marks = any(_OPEN in text or _CLOSE in text for text in self._facts.literals)
        return marks or self._tokenizer.has_thought_marks

    def _beginning(self, text: str) -> Literal["start", "thought", "answer"]:
        text = text.rstrip()
        if not self.thinks or text.endswith(_CLOSE):
            return "answer"
        return "thought" if text.endswith(_OPEN) else "start"

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        thinking: bool | None,
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool,
    ) -> str:
        variables: dict[str, Any] = {
            **self._special_tokens,
            "messages": [self._quoted(message) for message in messages],
            "tools": [self._quoted_tool(tool) for tool in tools] or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        if self._switch is not None:
            variables |= {} if thinking is None else {self._switch: thinking}
        elif thinking if not self.thinks else thinking is not None:
            raise UsageError(
                f"the chat template of {self._name} has no switch for thinking, "
                f"{' or '.join(_SWITCHES)}; leave thinking out"
            )
        return self._process.render(variables)

    def _quoted(self, message: Mapping[str, Any]) -> dict[str, Any]:
        # An assistant's text may hold its thoughts, which the template looks for.
        keep = (_OPEN, _CLOSE) if message["role"] == "assistant" else ()
        quoted: dict[str, Any] = {}
        for field, value in message.items():
            if field == "tool_calls":
                quoted[field] = [{**self._quoted_tool(call), "id": call["id"]} for call in value]
            elif field in ("role", "tool_call_id"):  # ids are letters that templates count
                quoted[field] = value
            else:
                quoted[field] = self._names.quoted(well_formed(value), keep)
        return quoted

    def _quoted_tool(self, value: Any) -> Any:
        """The same JSON with all strings marked, but for words that templates look for."""
        if isinstance(value, str):
            return value if value in _TOOL_WORDS else self._names.quoted(well_formed(value))
        if isinstance(value, list):
            return [self._quoted_tool(inner) for inner in value]
        if not isinstance(value, Mapping):
            return value
        return {self._quoted_tool(key): self._quoted_tool(inner) for key, inner in value.items()}
