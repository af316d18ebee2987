"""Talking with EVA: turns joined by <sep>, the oldest forgotten as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from martlet.engine.request import Context, Request, SamplingParams, Suppress
from martlet.engine.tasks import TaskModel
from martlet.errors import ContextLengthError, UsageError

__all__ = ["MAX_TURNS", "answer_turns", "dialogue_context"]

MAX_TURNS = 8
"""Turns that EVA reads at most, as in its own program."""

_ROLES = ("user", "assistant")


def answer_turns(
    model: TaskModel,
    messages: Sequence[Mapping[str, str]],
    params: SamplingParams,
    max_input_tokens: int | None = None,
) -> Request:
    """The answer to the last of some messages, each ``{"role": ..., "content": ...}``.

    The encoder reads the newest turns, at most 8, as many as fit into ``max_input_tokens`` (None:
    the model's own limit); no turn is cut.

    Raises:
        UsageError: messages that it cannot be given: a system role, an unknown field, an empty
            text, no question at the end.
        ContextLengthError: the last message alone does not fit.
    """
    turns = _checked_turns(model, messages)
    sep = model.token("sep")
    turn_ids = [[*model.tokenizer.encode(turn), sep] for turn in turns]
    limit_tokens = model.max_input_tokens if max_input_tokens is None else max_input_tokens
    kept = _newest_turns(turn_ids, limit_tokens)
    eos_ids = frozenset({sep})
    return Request(
        context=dialogue_context(model, [token_id for turn in kept for token_id in turn]),
        params=params,
        constraint=Suppress(model.suppressed(allowed=[sep])),
        eos_ids=eos_ids,
        prompt_ids=tuple(i for turn in kept for i in turn if i != sep),
    )


def dialogue_context(model: TaskModel, turn_ids: Sequence[int]) -> Context:
    """How EVA is asked to answer turns that each end with <sep>."""
    start = model.sentinels(at_least=1)[0]
    return Context((start,), (*turn_ids, start))


def _checked_turns(model: TaskModel, messages: object) -> list[str]:
    if isinstance(messages, str) or not isinstance(messages, Sequence) or not messages:
        raise UsageError(
            "messages must be a list of at least one message, "
            'each {"role": "user" or "assistant", "content": text}'
        )
    for number, message in enumerate(messages, start=1):
        _check_message(model, number, message)
    if messages[-1]["role"] != "user":
        raise UsageError("the last message is the assistant's; end with one from the user")
    return [message["content"] for message in messages]


def _check_message(model: TaskModel, number: int, message: object) -> None:
    where = f"message {number}"
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        fields = sorted(map(str, message)) if isinstance(message, Mapping) else repr(message)
        raise UsageError(f"{where} must have exactly the fields role and content, got {fields}")
    role, content = message["role"], message["content"]
    if role == "system":
        raise UsageError(
            f"{where} has the role system, which {model.family} models do not know; "
            "put what they should know into a user's turn"
        )
    if role not in _ROLES:
        raise UsageError(f"{where} has the role {role!r}; it must be {' or '.join(_ROLES)}")
    if not isinstance(content, str) or not content.strip():
        raise UsageError(f"{where} has no text; its content must be a string that is not empty")


def _newest_turns(turn_ids: list[list[int]], limit_tokens: int | None) -> list[list[int]]:
    """The newest turns that fit, oldest first; one place is kept for the token that starts."""
    kept: list[list[int]] = []
    total = 1
    for turn in reversed(turn_ids[-MAX_TURNS:]):
        if limit_tokens is not None and total + len(turn) > limit_tokens:
            break
        total += len(turn)
        kept.insert(0, turn)
    if not kept:
        raise ContextLengthError(
            f"the last message has {len(turn_ids[-1]):,} tokens with its end mark, and the model "
            f"reads at most {limit_tokens:,} with its start mark; use a shorter message"
        )
    return kept
