"""The state of one text while it is written, whoever runs the model."""

from __future__ import annotations

from martlet.engine.request import Context, Finished, FinishReason, Request, Stats, TokenEvent
from martlet.engine.sampler import Sample, Sampler
from martlet.engine.stop import StopStrings
from martlet.tokenizers.detokenizer import Detokenizer
from martlet.tokenizers.tokenizer import Tokenizer

__all__ = ["Writing"]


class Writing:
    """From the tokens of a request, one after the other, to the events that its caller sees.

    Attributes:
        sampler: chooses the tokens; whoever does that in its place tells it (``Sampler.take``).
        unread: tokens that the decoder has not read yet; the caller takes them from here.
        reason: why the text has ended, None while it has not.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, vocab_size: int) -> None:
        self.request = request
        self.sampler = Sampler(request.params, vocab_size, request.prompt_ids, request.top_logprobs)
        self.unread: list[int] = []
        self.reason: FinishReason | None = None
        self._detokenizer = Detokenizer(tokenizer)
        self._stop = StopStrings(request.params.stop)
        self._output_ids: list[int] = []
        self._seconds = [0.0, 0.0]  # first token, all others

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt, of encoder and decoder."""
        context = self.request.context
        return len(context.decoder_ids) + len(context.encoder_ids or ())

    @property
    def num_output(self) -> int:
        """Tokens so far."""
        return len(self._output_ids)

    @property
    def left_tokens(self) -> int:
        """Tokens that may still come."""
        return self.request.params.max_tokens - len(self._output_ids)

    def accept(self, token_id: int, sample: Sample | None) -> TokenEvent | None:
        """One more token, chosen or (``sample`` is None) forced; None if it ends the text.

        Raises:
            Exception: whatever the request's constraint raises.
        """
        assert self.reason is None
        request = self.request
        self.sampler.accept(token_id)
        request.constraint.accept(token_id)
        self._output_ids.append(token_id)
        self.unread.append(token_id)
        if token_id in request.eos_ids:
            self.reason = "eos"
            return None
        text = self._stop.push(self._text_of(token_id))
        if self._stop.stopped:
            self.reason = "stop"
        elif self.left_tokens <= 0:
            self.reason = "length"
        if sample is None:
            return TokenEvent(token_id, text, None)
        return TokenEvent(token_id, text, sample.logprob, sample.top)

    def restart(self) -> Context | None:
        """What is read again where the context is full; None if the text ends there."""
        window = self.request.window
        if window is None:
            return None
        self.unread.clear()
        return window.restart(self._output_ids)

    def add_seconds(self, seconds: float) -> None:
        """Count the time that the newest token, or the search for one more, has taken."""
        self._seconds[len(self._output_ids) > 1] += seconds

    def finished(self) -> Finished:
        """The last event: text that was held back, and how it went; to be asked for once."""
        assert self.reason is not None
        text = self._tail()
        stats = Stats(
            finish_reason=self.reason,
            prompt_tokens=self.prompt_tokens,
            output_tokens=len(self._output_ids),
            prefill_seconds=self._seconds[0],
            decode_seconds=self._seconds[1],
            seed=self.sampler.seed,
        )
        return Finished(text, stats)

    def _text_of(self, token_id: int) -> str:
        spelled = self.request.spelled.get(token_id)
        if spelled is None:
            return self._detokenizer.push(token_id)
        return self._detokenizer.flush() + spelled  # no character goes on behind it

    def _tail(self) -> str:
        """Text held back by the detokenizer and by stop strings that did not come true."""
        if self.reason == "stop":
            return ""
        text = self._stop.push(self._detokenizer.flush())
        if self._stop.stopped:
            self.reason = "stop"
            return text
        return text + self._stop.flush()
