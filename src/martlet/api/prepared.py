"""What a model is asked, ready for a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, assert_never

from martlet.engine.blank_marks import split_at_blanks
from martlet.engine.chat import ChatOptions, chat
from martlet.engine.dialogue import answer_turns
from martlet.engine.fill_request import Fill, FillRequest
from martlet.engine.reply import CallPart, Splitter
from martlet.engine.request import Finished, Request, SamplingParams, TokenEvent
from martlet.engine.tasks import TaskModel
from martlet.engine.tool_calls import ToolCall
from martlet.engine.write import complete, write
from martlet.errors import UsageError

__all__ = [
    "MAX_TOP_LOGPROBS",
    "Prepared",
    "PromptKind",
    "TextPiece",
    "prepare",
    "task_of",
    "with_extras",
]

PromptKind = Literal["chat", "complete", "write", "fill"]

MAX_TOP_LOGPROBS = 20
"""The most probable tokens that can be told beside each token; OpenAI's number."""


class TextPiece(NamedTuple):
    """Some text, and where it belongs: to which blank, or to the thoughts before an answer.

    What has no blanks is written as blank 0. In place of text there may be the call of a tool.
    """

    text: str
    blank: int = 0
    is_thought: bool = False
    call: ToolCall | None = None


@dataclass(frozen=True)
class Prepared:
    """A request for ``Batch.submit``, and what its events mean.

    Each event is to be taken once, in order; not all need to be taken where nobody wants ``fill``.
    """

    request: Request
    filling: FillRequest | None = None
    splitter: Splitter | None = None

    def take(self, event: TokenEvent | Finished) -> list[TextPiece]:
        """The pieces of text that an event adds, none empty, and the calls of tools."""
        if self.filling is not None:
            return [TextPiece(text, blank) for blank, text in self.filling.take(event)]
        if self.splitter is None:
            return [TextPiece(event.text)] if event.text else []
        parts = self.splitter.push(event.text)
        if isinstance(event, Finished):
            parts += self.splitter.flush()
        return [
            TextPiece("", call=part.call)
            if isinstance(part, CallPart)
            else TextPiece(part.text, is_thought=part.kind == "thought")
            for part in parts
        ]

    @property
    def fill(self) -> Fill | None:
        """The text with its blanks filled, once the last event has been taken; else None."""
        return None if self.filling is None else self.filling.result


def task_of(kind: PromptKind, family: str) -> str:
    """Which of the defaults for sampling a prompt of this kind takes."""
    if kind != "complete":
        return kind
    return {"eva": "chat", "t5": "generate"}.get(family, "write")


def prepare(
    model: TaskModel,
    kind: PromptKind,
    payload: Any,
    params: SamplingParams,
    context_tokens: int,
    chat_options: ChatOptions,
) -> Prepared:
    """The request for what is asked; nothing is computed but tokens.

    ``context_tokens`` is what the decoder of a batch holds: ``write`` moves its window in that.
    ``chat_options`` are for chats alone.

    Raises:
        UsageError: the payload is malformed, or the model cannot do this.
        ContextLengthError: it is longer than what the model reads.
    """
    match kind:
        case "chat":
            asked = chat(model, payload, params, chat_options)
            prepared = Prepared(asked.request, splitter=asked.splitter())
            return _held_to(model, prepared, asked.format)
        case "complete":
            return Prepared(_completion(model, payload, params))
        case "write":
            return Prepared(write(model, payload, params, context_tokens))
        case "fill":
            pieces = split_at_blanks(payload) if isinstance(payload, str) else payload
            filling = FillRequest(model, pieces, params)
            return Prepared(filling.request, filling)
        case _:
            assert_never(kind)


def with_extras(
    model: TaskModel,
    prepared: Prepared,
    top_logprobs: int | None,
    format: Mapping[str, Any] | None,
) -> Prepared:
    """The same with log-probabilities of the most probable tokens, or held to a format.

    Raises:
        UsageError: a number out of range, a format for blanks, or one that is not supported.
    """
    num_top = 0 if top_logprobs is None else top_logprobs
    if type(num_top) is not int or not 0 <= num_top <= MAX_TOP_LOGPROBS:
        raise UsageError(
            f"top_logprobs is {top_logprobs!r:.40}; it must be a whole number from 0 to "
            f"{MAX_TOP_LOGPROBS}"
        )
    request = replace(prepared.request, top_logprobs=num_top)
    return _held_to(model, replace(prepared, request=request), format)


def _held_to(model: TaskModel, prepared: Prepared, format: Mapping[str, Any] | None) -> Prepared:
    """The same with a text that keeps to a format, where there is one."""
    if format is None:
        return prepared
    if prepared.filling is not None:
        raise UsageError("blanks have a form of their own; leave the format out, or ask for text")
    # Needs a package that is not always there.
    from martlet.engine.structured import structured_constraint

    mask = prepared.request.constraint.suppressed()
    assert mask is not None, "every task suppresses its control tokens"
    constraint = structured_constraint(model, format, mask)
    return replace(prepared, request=replace(prepared.request, constraint=constraint))


def _completion(model: TaskModel, prompt: Any, params: SamplingParams) -> Request:
    """What follows a prompt; EVA answers it as a turn."""
    if model.family != "eva":
        return complete(model, prompt, params)
    if not isinstance(prompt, str):
        raise UsageError(f"{model.name} answers turns of a dialogue; give the prompt as a text")
    return answer_turns(model, [{"role": "user", "content": prompt}], params)
