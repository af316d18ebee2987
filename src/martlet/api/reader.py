"""A loaded model as a reader: what it is, and what it makes of texts that are there."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor

from martlet.compression.perplexity import TextScore, score_causal, score_conditional
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.embed import Embeddings, embed_texts, embedding_ids
from martlet.engine.generator import Generator
from martlet.engine.score import Score, score_continuation, score_tokens, token_logits
from martlet.engine.tasks import ChatControl, TaskModel
from martlet.errors import UsageError
from martlet.models.family import Task
from martlet.tokenizers.tokenizer import Tokenizer


class Reader:
    """A loaded model that reads: vectors, raw output and probabilities of texts.

    ``batch_limits`` are the texts that it has memory for at a time.
    """

    def __init__(self, task_model: TaskModel, batch_limits: BatchLimits) -> None:
        self.batch_limits = batch_limits
        self._model = task_model

    @property
    def name(self) -> str:
        """The name that it was loaded by."""
        return self._model.name

    @property
    def family(self) -> str:
        """Which prompt formats it knows: "cpm1", "cpm2", "eva", else its model type, as "qwen3"."""
        return self._model.family

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can be asked for: "chat", "write", "fill"; the first is what it is best at."""
        return self._model.tasks

    @property
    def thinks(self) -> bool:
        """Whether it may think before it answers; see ``chat``.

        Raises:
            ModelFileError: its chat template cannot be used.
        """
        return self._model.thinks

    @property
    def chat_controls(self) -> tuple[ChatControl, ...]:
        """What ``chat`` takes beside turns: "system" messages, a switch for "thinking", "tools".

        Raises:
            ModelFileError: its chat template cannot be used.
        """
        return self._model.chat_controls

    @property
    def num_weights(self) -> int:
        """Numbers that it was trained to; the scales of int8 matrices are not among them."""
        blocks = self.generator.architecture.block_specs()
        return sum(math.prod(tensor.shape) for block in blocks for tensor in block.tensors)

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer: ``encode(text)`` and ``decode(ids)``."""
        return self._model.tokenizer

    @property
    def generator(self) -> Generator:
        """Architecture, executor and tokenizer joined, for measuring and for requests by hand."""
        return self._model.generator

    def embed(self, texts: Sequence[str | Sequence[int]]) -> Embeddings:
        """A vector for each text (or its token ids), whose products tell how alike texts are.

        It is the mean of the encoder's output over the text's tokens, of length 1. The result
        is a pair: ``vectors``, a list of numbers for each text, and ``prompt_tokens``.

        Raises:
            UsageError: there is no text, one is empty, or the model has no encoder.
            ContextLengthError: a text is longer than what the encoder reads.
        """
        token_ids = self.embedding_ids(texts)
        vectors = embed_texts(self._model, token_ids, self.batch_limits.chunk_tokens)
        return Embeddings(vectors.tolist(), sum(map(len, token_ids)))

    def embedding_ids(self, texts: Sequence[str | Sequence[int]]) -> list[list[int]]:
        """What ``embed`` reads of each text; given these in place of the texts, it does the same.

        Raises:
            UsageError, ContextLengthError: as ``embed``.
        """
        if isinstance(texts, str) or not isinstance(texts, Sequence) or not texts:
            raise UsageError("texts must be a list of at least one text to embed")
        return [embedding_ids(self._model, text) for text in texts]

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """The raw output after each token; decoder-only models.

        Shapes:
            return: (num_tokens, vocab_size) float32 on the CPU; row i predicts token i + 1

        Raises:
            UsageError: no tokens, an id outside the vocabulary, or an encoder-decoder model.
            ContextLengthError: more tokens than the model has positions.
        """
        # A copy made here is no inference tensor: it may be used with autograd.
        return token_logits(self._model, token_ids).cpu().clone()

    def score(self, context: str, continuation: str) -> Score:
        """How probable a continuation is after a context: log-probability, tokens, characters.

        Raises:
            UsageError: the continuation is empty.
            ContextLengthError: the context is longer than what the encoder reads.
        """
        return score_continuation(self._model, context, continuation)

    def score_text(
        self,
        text: str,
        *,
        progress: Callable[[int, int], None] | None = None,
        observe: Callable[[Tensor], None] | None = None,
    ) -> TextScore:
        """How well the model predicts a whole text of any length: perplexity, bits per character.

        ``progress`` is called with (tokens scored, tokens to score), ``observe`` with the logits
        behind the next scored tokens, (num_tokens, vocab_size), on the device that computes.

        Raises:
            UsageError: the text has fewer than two tokens.
        """
        window_tokens = self._model.generator.architecture.max_positions
        if window_tokens is not None:
            start_ids = self._model.start_ids
            return score_causal(
                lambda ids: token_logits(self._model, (*start_ids, *ids))[len(start_ids) :],
                self.tokenizer,
                text,
                window_tokens=window_tokens - len(start_ids),
                progress=progress,
                observe=observe,
            )
        # Two places of the encoder are for the marks of the family's format.
        input_tokens = (self._model.max_input_tokens or 512) - 2
        return score_conditional(
            lambda context_ids, ids: score_tokens(self._model, context_ids, ids, observe),
            self.tokenizer,
            text,
            context_tokens=min(256, input_tokens),
            piece_tokens=min(64, input_tokens),
            progress=progress,
        )
