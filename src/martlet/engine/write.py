"""Going on with a text: plain continuation, and writing past the end of the context.

A decoder-only model reads the text itself, most of them after their bos. CPM-2 reads it in the
encoder, followed by its last sentinel, and the decoder writes what stands behind that sentinel.
"""

from __future__ import annotations

from collections.abc import Sequence

from martlet.engine.request import Context, Request, SamplingParams, Suppress, Window
from martlet.engine.tasks import TaskModel
from martlet.errors import ContextLengthError

__all__ = ["complete", "continuation_context", "write"]

_OPENING = "the text to go on with"


def write(
    model: TaskModel,
    opening: str | Sequence[int],
    params: SamplingParams,
    context_tokens: int | None = None,
) -> Request:
    """A text that follows an opening, of any length.

    When the context is full, writing goes on from its last tokens: a decoder-only model reads the
    last half of its context again; CPM-2 puts the text so far, as much as its encoder reads, in
    front of an empty decoder. An opening that is longer than that is read from its last tokens.
    ``context_tokens`` makes the decoder's context smaller than the model's own. The opening is a
    text, or its ids.

    Raises:
        UsageError: not a model that writes, or the opening is empty.
    """
    model.require("write")
    opening_ids = model.prompt_ids(opening, _OPENING)
    limit_tokens = _decoder_limit(model)
    if context_tokens is not None:
        limit_tokens = min(limit_tokens, context_tokens)
    is_decoder_only = not model.generator.architecture.has_encoder

    def restart(output_ids: Sequence[int]) -> Context:
        text_ids = opening_ids + list(output_ids)
        if is_decoder_only:
            text_ids = text_ids[-(limit_tokens // 2) :]
        return continuation_context(model, text_ids)

    context = continuation_context(model, opening_ids)
    too_long = is_decoder_only and len(context.decoder_ids) >= limit_tokens
    return _request(
        model,
        restart(()) if too_long else context,
        params,
        opening_ids,
        Window(limit_tokens, restart),
    )


def complete(model: TaskModel, prompt: str | Sequence[int], params: SamplingParams) -> Request:
    """What follows a prompt that fits into the context; ends, at the latest, where that is full.

    CPM-2 goes on as in ``write``. T5 reads the prompt as a task for its encoder. EVA is not asked
    this way: see ``chat``.

    Raises:
        UsageError: the prompt is empty.
        ContextLengthError: the prompt is longer than what the model reads.
    """
    prompt_ids = model.prompt_ids(prompt, _OPENING)
    limit_tokens = model.generator.architecture.max_positions
    num_tokens = len(model.start_ids) + len(prompt_ids)
    if limit_tokens is not None and num_tokens > limit_tokens:
        raise ContextLengthError(
            f"the prompt has {num_tokens:,} tokens and {model.name} reads at most "
            f"{limit_tokens:,}; use a shorter one, or `write`, which reads the end of a longer one"
        )
    if model.generator.architecture.has_encoder:
        model.require_short(len(prompt_ids) + 1)  # and the sentinel, or </s> for T5
    context = continuation_context(model, prompt_ids)
    return _request(model, context, params, prompt_ids, window=None)


def continuation_context(model: TaskModel, text_ids: Sequence[int]) -> Context:
    """How a model is asked to go on with a text; CPM-2 reads as much of its end as it can."""
    if model.family == "cpm2":
        mark = model.sentinels(at_least=1)[-1]
        if model.max_input_tokens is not None:
            text_ids = text_ids[-(model.max_input_tokens - 1) :]
        return Context((model.token("bos"), mark), (*text_ids, mark))
    if model.family == "t5":
        return Context((model.token("pad"),), (*text_ids, model.token("eos")))
    can_go_on = not model.generator.architecture.has_encoder
    assert can_go_on, f"{model.family} models do not continue a text"
    return Context((*model.start_ids, *text_ids))


def _request(
    model: TaskModel,
    context: Context,
    params: SamplingParams,
    prompt_ids: Sequence[int],
    window: Window | None,
) -> Request:
    eos_ids = model.end_ids
    return Request(
        context=context,
        params=params,
        constraint=Suppress(model.suppressed(allowed=sorted(eos_ids))),
        eos_ids=eos_ids,
        prompt_ids=tuple(prompt_ids),
        window=window,
    )


def _decoder_limit(model: TaskModel) -> int:
    """Tokens that the decoder holds before writing starts over from the end of the text."""
    limit_tokens = model.generator.architecture.max_positions
    if limit_tokens is not None:
        return limit_tokens
    # CPM-2 was trained with a decoder half as long as its encoder.
    assert model.max_input_tokens is not None, "a model that writes has a limit"
    return max(4, model.max_input_tokens // 2)
