"""How probable a model finds a text: for perplexity, and for choosing between continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
from torch import Tensor

from martlet.engine.dialogue import dialogue_context
from martlet.engine.request import Context
from martlet.engine.tasks import TaskModel
from martlet.engine.write import continuation_context
from martlet.errors import UsageError

__all__ = ["Score", "score_continuation", "score_tokens", "token_logits"]

# Rows of logits that exist at once: 128 rows of a vocabulary of 30 k are 15 MB.
_CHUNK_TOKENS = 128


@dataclass(frozen=True)
class Score:
    """How probable a continuation is after its context.

    Units:
        logprob: nats, summed over all tokens.
    """

    logprob: float
    num_tokens: int
    num_characters: int


def score_continuation(model: TaskModel, context: str, continuation: str) -> Score:
    """The log-probability of a continuation, token by token; the end of the text is not scored.

    A decoder-only model reads the context as it is (Llama after its bos); an empty one stands for
    the beginning of a document. CPM-2 reads it as in ``write``, EVA as the turn that the
    continuation answers, T5 as the task. Context and continuation are split into tokens separately.

    Raises:
        UsageError: the continuation is empty.
        ContextLengthError: the context is longer than what the encoder reads.
    """
    context_ids = model.encode(context, "the context")
    token_ids = model.encode(continuation, "the continuation")
    if not token_ids:
        raise UsageError("the continuation is empty; there is nothing to score")
    logprobs = score_tokens(model, context_ids, token_ids)
    return Score(sum(logprobs), len(token_ids), len(continuation))


def score_tokens(
    model: TaskModel,
    context_ids: Sequence[int],
    token_ids: Sequence[int],
    observe: Callable[[Tensor], None] | None = None,
) -> list[float]:
    """The log-probability of each token after the context and the tokens before it, in nats.

    A text longer than the model's context is scored in parts; each part sees as much of what
    stands before it as there is room for, at least half a context. See ``score_continuation``.
    ``observe`` is called with the logits behind the tokens, (num_tokens, vocab_size), in order.
    """
    everything = [*context_ids, *token_ids]
    if not context_ids and not model.start_ids and not model.generator.architecture.has_encoder:
        everything.insert(0, model.token("eos"))
    done = len(everything) - len(token_ids)
    logprobs: list[float] = []
    while done < len(everything):
        context, num_scored = _next_part(model, everything, done)
        logprobs += _score_after(model, context, everything[done : done + num_scored], observe)
        done += num_scored
    return logprobs


def token_logits(model: TaskModel, token_ids: Sequence[int]) -> Tensor:
    """The logits after each token; a decoder-only model's raw output for these ids and no others.

    Shapes:
        return: (num_tokens, vocab_size) float32

    Raises:
        UsageError: no tokens, ids outside the vocabulary, or an encoder-decoder model.
        ContextLengthError: more tokens than the model has positions.
    """
    architecture = model.generator.architecture
    if architecture.has_encoder:
        raise UsageError(
            f"{model.name} is an encoder-decoder model, which has no logits for a text alone; "
            "use score(context, continuation)"
        )
    if len(token_ids) == 0:
        raise UsageError("there are no token ids; give at least one")
    for token_id in token_ids:
        if not isinstance(token_id, SupportsIndex) or not 0 <= token_id < architecture.vocab_size:
            raise UsageError(
                f"token id {token_id!r:.40} is not a whole number from 0 to "
                f"{architecture.vocab_size - 1:,}, as the vocabulary has them"
            )
    sequence = model.generator.start(Context(tuple(token_ids)), room_tokens=0, limit_tokens=None)
    return sequence.advance(token_ids, last_only=False)


def _next_part(model: TaskModel, everything: Sequence[int], done: int) -> tuple[Context, int]:
    """The context for the tokens from ``done`` on, and how many of them to score with it."""
    left = len(everything) - done
    limit_tokens = model.generator.architecture.max_positions
    if limit_tokens is not None:
        limit_tokens -= len(model.start_ids)
        num_scored = min(left, max(1, limit_tokens // 2))
        first = max(0, done - (limit_tokens - num_scored))
        return Context((*model.start_ids, *everything[first:done])), num_scored
    before = everything[:done]
    if model.family == "cpm2":
        assert model.max_input_tokens is not None, "CPM-2 models have a limit"
        return continuation_context(model, before), min(left, max(1, model.max_input_tokens // 2))
    model.require_short(len(before) + 2)
    if model.family == "eva":
        return dialogue_context(model, [*before, model.token("sep")]), left
    return continuation_context(model, before), left


def _score_after(
    model: TaskModel,
    context: Context,
    token_ids: Sequence[int],
    observe: Callable[[Tensor], None] | None,
) -> list[float]:
    sequence = model.generator.start(context, room_tokens=len(token_ids), limit_tokens=None)
    rows = sequence.advance(context.decoder_ids)
    if observe:
        observe(rows)
    logprobs = _logprobs_of(rows, token_ids[:1])
    for first in range(0, len(token_ids) - 1, _CHUNK_TOKENS):
        chunk = token_ids[first : min(first + _CHUNK_TOKENS, len(token_ids) - 1)]
        rows = sequence.advance(chunk, last_only=False)
        if observe:
            observe(rows)
        logprobs += _logprobs_of(rows, token_ids[first + 1 : first + 1 + len(chunk)])
    model.generator.finish(sequence)
    return logprobs


def _logprobs_of(logits: Tensor, token_ids: Sequence[int]) -> list[float]:
    """Log-probability of one token in each row; logits: (len(token_ids), vocab_size)."""
    targets = torch.tensor(list(token_ids), device=logits.device)[:, None]
    chosen = logits.gather(1, targets)[:, 0]
    values: list[float] = (chosen - logits.logsumexp(dim=1)).tolist()
    return values
