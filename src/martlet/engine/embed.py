"""Texts as vectors: what an encoder makes of them, averaged over their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex

import torch
from torch import Tensor

from martlet.device.threads import cpu_threads
from martlet.engine.passes import pass_threads, run_stack
from martlet.engine.sequence_memory import NEXT_STEP
from martlet.engine.tasks import TaskModel
from martlet.errors import UsageError
from martlet.memory.capacity import report_out_of_memory

__all__ = ["Embeddings", "embed_texts", "embedding_ids"]


class Embeddings(NamedTuple):
    """A vector for each text, of length 1, and the tokens that were read for all of them."""

    vectors: list[list[float]]
    prompt_tokens: int


def embedding_ids(model: TaskModel, text: object) -> list[int]:
    """What the encoder reads of a text, or of its token ids, to make its vector.

    T5 and EVA read the end mark behind it that they were trained with.

    Raises:
        UsageError: neither a text nor ids of the vocabulary, or it is empty.
        ContextLengthError: it is longer than what the encoder reads.
    """
    _require_encoder(model)
    if isinstance(text, str):
        token_ids = model.tokenizer.encode(text)
        end = {"t5": "eos", "eva": "sep"}.get(model.family)
        if token_ids and end is not None:
            token_ids.append(model.token(end))
    else:
        token_ids = _checked_ids(model, text)
    if not token_ids:
        raise UsageError("a text to embed is empty; give at least one character of each")
    model.require_short(len(token_ids))
    return token_ids


def embed_texts(
    model: TaskModel, token_ids: Sequence[Sequence[int]], max_tokens_a_pass: int
) -> Tensor:
    """The mean of the encoder's last hidden state over the tokens of each text, scaled to length 1.

    Texts of like length are read together, as many as stay within ``max_tokens_a_pass``, padding
    counted; a longer one is read alone. A text has the same vector alone and beside others but for
    rounding: a cosine of at least 0.99999 with float weights, 0.999 with activations of half
    precision.

    Shapes:
        return: (number of texts, hidden_size) float32 on the CPU

    Raises:
        UsageError: a model without an encoder.
        CapacityError: a pass does not fit into memory.
    """
    _require_encoder(model)
    order = sorted(range(len(token_ids)), key=lambda index: len(token_ids[index]))
    vectors: dict[int, Tensor] = {}
    start = 0
    while start < len(order):
        end = start + 1
        # The rows are padded to the length of the last one.
        while end < len(order) and (
            len(token_ids[order[end]]) * (end + 1 - start) <= max_tokens_a_pass
        ):
            end += 1
        rows = [token_ids[index] for index in order[start:end]]
        vectors |= zip(order[start:end], _one_pass(model, rows), strict=True)
        start = end
    return torch.stack([vectors[index] for index in range(len(token_ids))])


def _one_pass(model: TaskModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """The vectors of texts that are read together, (number of texts, hidden_size) float32."""
    architecture, executor = model.generator.architecture, model.generator.executor
    counts = [len(row) for row in rows]
    width = max(counts)
    padded = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    lengths = torch.tensor(counts)
    with (
        report_out_of_memory(f"embedding {sum(counts):,} tokens", NEXT_STEP),
        cpu_threads(pass_threads(executor, padded.numel())),
        torch.inference_mode(),
    ):
        is_even = len(set(counts)) == 1
        hidden = run_stack(
            architecture,
            executor,
            "encode",
            padded.to(executor.device),
            lengths=None if is_even else lengths,
        )
        hidden = architecture.head(executor.fixed(), "encoder", hidden).float().cpu()
        is_real = torch.arange(width) < lengths[:, None]
        # Not a product: what stands in the padding may be no number.
        total = hidden.masked_fill(~is_real[..., None], 0).sum(dim=1)
        return torch.nn.functional.normalize(total, dim=1)


def _checked_ids(model: TaskModel, token_ids: object) -> list[int]:
    vocab_size = model.tokenizer.vocab_size
    if (
        isinstance(token_ids, Sequence)
        and not isinstance(token_ids, bytes)
        and all(
            isinstance(i, SupportsIndex) and not isinstance(i, bool) and 0 <= int(i) < vocab_size
            for i in token_ids
        )
    ):
        return [int(i) for i in token_ids]
    raise UsageError(
        f"a text to embed is {token_ids!r:.40}; it must be a string, or token ids from 0 to "
        f"{vocab_size - 1:,}"
    )


def _require_encoder(model: TaskModel) -> None:
    if not model.generator.architecture.has_encoder:
        raise UsageError(
            f"{model.name} has no encoder, which makes vectors of texts; models of the families "
            "cpm2, eva and t5 have one, cpm2-mini for one"
        )
