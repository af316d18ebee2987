"""Whether a text fits into a slot of a batch."""

from __future__ import annotations

from dataclasses import dataclass

from martlet.engine.batch_limits import BatchLimits
from martlet.engine.request import Context, Request
from martlet.errors import ContextLengthError

__all__ = ["SlotRoom"]


@dataclass(frozen=True)
class SlotRoom:
    """The room of each slot; ``max_positions`` is that of the model, None without a limit."""

    limits: BatchLimits
    max_positions: int | None

    def limit_tokens(self, request: Request) -> int:
        """Tokens that the decoder can hold of a text."""
        limits = [self.limits.slot_tokens, self.max_positions]
        if request.window is not None:
            limits.append(request.window.limit_tokens)
        return min(limit for limit in limits if limit is not None)

    def takes(self, context: Context, request: Request) -> bool:
        """Whether a slot has room for a context, and so for one more token to be chosen."""
        num_encoder_tokens = len(context.encoder_ids or ())
        return len(context.decoder_ids) <= self.limit_tokens(request) and num_encoder_tokens <= (
            self.limits.encoder_tokens or 0
        )

    def require(self, request: Request) -> None:
        """Check that a text can be begun.

        Raises:
            ContextLengthError: it cannot; names both numbers.
        """
        context = request.context
        if self.takes(context, request):
            return
        num_tokens, limit_tokens = len(context.decoder_ids), self.limit_tokens(request)
        where, can_grow = "a text", limit_tokens == self.limits.slot_tokens
        if num_tokens <= limit_tokens:
            num_tokens = len(context.encoder_ids or ())
            limit_tokens = self.limits.encoder_tokens or 0
            where, can_grow = "the encoder", False
        can_grow = can_grow and limit_tokens != self.max_positions
        advice = "use a shorter text"
        if can_grow:
            advice += ", or load the model with a higher --context"
        raise ContextLengthError(
            f"the prompt has {num_tokens:,} tokens and there is room for {limit_tokens:,} in "
            f"{where}; {advice}"
        )
