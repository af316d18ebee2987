"""One text of a job: what the batch tells of it becomes what the server is told."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from martlet.api.prepared import Prepared, TextPiece
from martlet.engine.batch_text import Started
from martlet.engine.fill_request import Blank, Fill
from martlet.engine.request import Finished, FinishReason, Stats, TokenEvent
from martlet.server.messages import TokenDetails
from martlet.server.token_details import TokenTexts, finite_logprob
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["Choice"]

_FINISH_REASONS: dict[FinishReason, str] = {"eos": "stop", "stop": "stop", "length": "length"}


class Choice:
    """A text while it is written; ``tells_tokens`` reports the log-probability of each token.

    Attributes:
        index: of the choice in its job.
    """

    def __init__(
        self, index: int, prepared: Prepared, tokenizer: Tokenizer, tells_tokens: bool
    ) -> None:
        self.index = index
        self._prepared = prepared
        self._tokenizer = tokenizer
        self._tells_tokens = tells_tokens
        self._fills = prepared.filling is not None
        # Only the token that closes a blank is one of these; see engine/fill.py.
        self._closing_ids = tokenizer.special.control_ids() if self._fills else frozenset()
        self._blank = 0
        self._tokens: list[list[TokenDetails]] = [[]]
        self._texts = TokenTexts(tokenizer)
        self._has_called = False

    def tell(self, event: Started | TokenEvent | Finished) -> list[dict[str, Any]]:
        """The fields of the events that the server gets for one of the batch's."""
        if isinstance(event, Started):
            return [{"event": "started", "prompt_tokens": event.prompt_tokens, "seed": event.seed}]
        if isinstance(event, TokenEvent):
            return self._tell_token(event)
        pieces = [self._text(piece) for piece in self._prepared.take(event)]
        return [*pieces, self._finished(event.stats)]

    def _tell_token(self, event: TokenEvent) -> list[dict[str, Any]]:
        told = [self._text(piece) for piece in self._prepared.take(event)]
        if event.token_id in self._closing_ids:
            self._blank += 1
            self._tokens.append([])
            self._texts = TokenTexts(self._tokenizer)
        elif self._tells_tokens:
            details = self._texts.push(event)
            self._tokens[self._blank].append(details)
            if not told:
                told = [self._text(TextPiece("", self._blank))]
            told[0]["tokens"] = [details]
        return told

    def _text(self, piece: TextPiece) -> dict[str, Any]:
        fields: dict[str, Any] = {"event": "text", "text": piece.text}
        if piece.is_thought:
            fields["is_thought"] = True
        if piece.call is not None:
            self._has_called = True
            fields["call"] = piece.call._asdict()
        return {**fields, "blank": piece.blank} if self._fills else fields

    def _finished(self, stats: Stats) -> dict[str, Any]:
        fill = self._prepared.fill
        if fill is not None:
            stats = fill.stats
        reason = _FINISH_REASONS[stats.finish_reason]
        fields: dict[str, Any] = {
            "event": "finished",
            "finish_reason": "tool_calls" if self._has_called and reason == "stop" else reason,
            "stats": {**asdict(stats), "tokens_per_second": stats.tokens_per_second},
        }
        if fill is not None:
            fields["fill"] = self._fill(fill)
        return fields

    def _fill(self, fill: Fill) -> dict[str, Any]:
        return {"text": fill.text, "blanks": [self._describe(blank) for blank in fill.blanks]}

    def _describe(self, blank: Blank) -> dict[str, Any]:
        logprob = finite_logprob(blank.logprob)
        fields: dict[str, Any] = {
            "index": blank.index,
            "text": blank.text,
            "start": blank.start,
            "end": blank.end,
            "closed": blank.closed,
            "logprob": logprob,
            "probability": math.exp(logprob),
        }
        if self._tells_tokens:
            has_tokens = blank.index < len(self._tokens)
            fields["tokens"] = self._tokens[blank.index] if has_tokens else []
        return fields
