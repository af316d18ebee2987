"""How well a model predicts a text: bits per character and perplexity per token.

Two models with different vocabularies compare by bits per character, not by perplexity: a
vocabulary with longer tokens has the higher perplexity for the same knowledge of the text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.errors import UsageError
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = [
    "Piece",
    "TextScore",
    "Window",
    "pieces",
    "score_causal",
    "score_conditional",
    "windows",
]

# Rows of logits that are turned into float64 at once: 64 rows of a 50 k vocabulary are 26 MB.
_ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class TextScore:
    """The cost of a text under a model.

    Only tokens that were predicted count, and the characters belong to those tokens: the start
    of the text, which a model sees before it predicts anything, is in neither number.
    ``num_unknown_tokens`` are predicted tokens that stand for characters outside the vocabulary;
    many of them make a text look cheaper than it is.

    Units:
        negative_log_likelihood: nats, summed over ``num_tokens``.
    """

    negative_log_likelihood: float
    num_tokens: int
    num_characters: int
    num_unknown_tokens: int

    @property
    def bits_per_character(self) -> float:
        """Bits that the model needs for one character (Unicode code point) of the text."""
        return self.negative_log_likelihood / math.log(2) / self.num_characters

    @property
    def bits_per_token(self) -> float:
        """Bits that the model needs for one token."""
        return self.negative_log_likelihood / math.log(2) / self.num_tokens

    @property
    def perplexity(self) -> float:
        """E to the mean cost of a token; infinity where that is no float any more."""
        try:
            return math.exp(self.negative_log_likelihood / self.num_tokens)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Window:
    """Tokens ``start`` to ``end`` go through the model; ``first_scored`` to ``end`` count."""

    start: int
    first_scored: int
    end: int


@dataclass(frozen=True)
class Piece:
    """Tokens ``start`` to ``end`` are predicted from tokens ``context_start`` to ``start``."""

    context_start: int
    start: int
    end: int


def windows(num_tokens: int, window_tokens: int) -> Iterator[Window]:
    """Windows that overlap by half, so that every token but the first is scored exactly once.

    Past the first window each token has at least half a window of context.
    """
    assert window_tokens >= 2, "a window needs a token of context and a token to predict"
    stride = window_tokens // 2
    start, first_scored = 0, 1
    while first_scored < num_tokens:
        end = min(start + window_tokens, num_tokens)
        yield Window(start, first_scored, end)
        first_scored = end
        start += stride


def pieces(num_tokens: int, context_tokens: int, piece_tokens: int) -> Iterator[Piece]:
    """Consecutive pieces, each predicted from up to ``context_tokens`` tokens before it.

    The first piece begins after ``piece_tokens`` tokens (after ``context_tokens`` or half the
    text where that is less), so that an encoder never reads an empty text.
    """
    assert context_tokens >= 1 and piece_tokens >= 1
    start = min(piece_tokens, context_tokens, num_tokens // 2)
    while start < num_tokens:
        end = min(start + piece_tokens, num_tokens)
        yield Piece(max(0, start - context_tokens), start, end)
        start = end


def score_causal(
    logits: Callable[[Sequence[int]], Tensor],
    tokenizer: Tokenizer,
    text: str,
    *,
    window_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    observe: Callable[[Tensor], None] | None = None,
) -> TextScore:
    """The cost of a text under a decoder-only model.

    The first token of the text is not scored: nothing stands before it.

    Args:
        logits: token ids to (num_tokens, vocab_size); row i predicts token i + 1.
        tokenizer: turns the text into the ids that the model knows.
        text: at least two tokens long.
        window_tokens: tokens that go through the model at once, at most its context.
        progress: called with (tokens scored, tokens to score) after every window.
        observe: called with the logits behind the scored tokens of every window, in order,
            (num_tokens, vocab_size).

    Raises:
        UsageError: the text has fewer than two tokens.
    """
    token_ids = _encode(tokenizer, text)
    cost = 0.0
    for window in windows(len(token_ids), window_tokens):
        ids = token_ids[window.start : window.end]
        rows = logits(ids[:-1])  # (num_tokens - 1, vocab_size); the last token predicts nothing
        first = window.first_scored - window.start
        targets = token_ids[window.first_scored : window.end]
        cost += _negative_log_likelihood(rows[first - 1 :], targets)
        if observe:
            observe(rows[first - 1 :])
        if progress:
            progress(window.end - 1, len(token_ids) - 1)
    return _text_score(cost, tokenizer, text, token_ids, first_scored=1)


def score_conditional(
    score: Callable[[Sequence[int], Sequence[int]], Sequence[float]],
    tokenizer: Tokenizer,
    text: str,
    *,
    context_tokens: int = 256,
    piece_tokens: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> TextScore:
    """The cost of a text under an encoder-decoder model.

    The encoder reads what stands before a piece, the decoder predicts the piece. The start of
    the text (see ``pieces``) is context only and not scored.

    Args:
        score: (context ids, continuation ids) to the log-probability of each continuation token.
        tokenizer: turns the text into the ids that the model knows.
        text: at least two tokens long.
        context_tokens: tokens that the encoder reads at most.
        piece_tokens: tokens that the decoder predicts at once.
        progress: called with (tokens scored, tokens to score) after every piece.

    Units:
        score returns nats.

    Raises:
        UsageError: the text has fewer than two tokens.
    """
    token_ids = _encode(tokenizer, text)
    cost = 0.0
    first_scored = None
    for piece in pieces(len(token_ids), context_tokens, piece_tokens):
        first_scored = piece.start if first_scored is None else first_scored
        targets = token_ids[piece.start : piece.end]
        values = score(token_ids[piece.context_start : piece.start], targets)
        assert len(values) == len(targets), "one log-probability for every token"
        cost -= math.fsum(values)
        if progress:
            progress(piece.end - first_scored, len(token_ids) - first_scored)
    assert first_scored is not None
    return _text_score(cost, tokenizer, text, token_ids, first_scored)


def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
    if not isinstance(text, str):
        raise UsageError(f"the text is of type {type(text).__name__}; it must be a string")
    token_ids = tokenizer.encode(text)
    if len(token_ids) < 2:
        raise UsageError(
            f"the text has {len(token_ids)} tokens, 2 is the least that can be scored; "
            "give a longer text"
        )
    return token_ids


def _negative_log_likelihood(logits: Tensor, targets: Sequence[int]) -> float:
    """Summed cost of the targets in nats; float64, so that long texts add up exactly enough.

    Shapes:
        logits: (len(targets), vocab_size)
    """
    assert logits.shape[0] == len(targets), "one row of logits for every predicted token"
    target_ids = torch.tensor(targets, device=logits.device)
    cost = 0.0
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        rows = logits[start : start + _ROWS_AT_ONCE]
        ids = target_ids[start : start + _ROWS_AT_ONCE]
        exact = rows.to(torch.float64)
        picked = exact.gather(1, ids[:, None]).squeeze(1)
        cost += float((exact.logsumexp(dim=1) - picked).sum())
    return cost


def _text_score(
    cost: float, tokenizer: Tokenizer, text: str, token_ids: Sequence[int], first_scored: int
) -> TextScore:
    unknown = tokenizer.special.unk
    scored = token_ids[first_scored:]
    # Counted from the front: the tail may hold unknown tokens, which decode to nothing.
    num_characters = len(text) - len(tokenizer.decode(token_ids[:first_scored]))
    return TextScore(
        negative_log_likelihood=cost,
        num_tokens=len(scored),
        num_characters=max(num_characters, 1),
        num_unknown_tokens=0 if unknown is None else sum(i == unknown for i in scored),
    )
