"""Tokens as answers with log-probabilities show them."""

from __future__ import annotations

import math

from martlet.engine.request import TokenEvent
from martlet.server.messages import TokenDetails
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["TokenTexts", "finite_logprob"]

_LEAST_LOGPROB = -9999.0


def finite_logprob(logprob: float) -> float:
    """A log-probability that JSON can hold: -9999 for what cannot be."""
    return max(logprob, _LEAST_LOGPROB) if math.isfinite(logprob) else _LEAST_LOGPROB


class TokenTexts:
    """Tells the tokens of one text, in their order; their bytes, put together, are the text's."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._add = tokenizer.start_decoding()
        self._previous: int | None = None

    def push(self, event: TokenEvent) -> TokenDetails:
        """The next token, with the most probable ones in its place where these were asked for."""
        raw = self._add(event.token_id)
        details = _details(event.token_id, raw, event.logprob)
        if event.top:
            details["top"] = [
                _details(token_id, self._in_its_place(token_id), logprob)
                if token_id != event.token_id
                else _details(token_id, raw, logprob)
                for token_id, logprob in event.top
            ]
        self._previous = event.token_id
        return details

    def _in_its_place(self, token_id: int) -> bytes:
        """The bytes of a token that might have come; a space may depend on the one before."""
        if self._previous is None:
            return self._tokenizer.decode_bytes([token_id])
        before = self._tokenizer.decode_bytes([self._previous])
        return self._tokenizer.decode_bytes([self._previous, token_id])[len(before) :]


def _details(token_id: int, raw: bytes, logprob: float | None) -> TokenDetails:
    return {
        "id": token_id,
        "text": raw.decode("utf-8", "replace"),
        "bytes": list(raw),
        "logprob": None if logprob is None else finite_logprob(logprob),
    }
