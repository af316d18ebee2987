"""What the float model finds probable after each token, kept small.

Of every row the most probable tokens are kept, and how much probability is left for all others
together. That is a distribution over a few tokens and "another one", which a second model can be
compared with; the float model is not needed any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.compression.walk import Walk, WalkBatch
from martlet.models.architecture import Architecture, Weights

__all__ = ["Targets", "divergence", "measure_targets", "real_rows", "row_chunks"]

_LOGITS_AT_ONCE = 1 << 25  # 128 MiB of float32, and a few times as much on the way back
_LEAST_LOG = -30.0  # of the probability of all other tokens; float16 holds it


@dataclass(frozen=True, eq=False)
class Targets:
    """The probable tokens after each decoder token of each sample.

    Shapes, with the real tokens of all samples one after the other as rows:
        token_ids: (rows, k) int32
        log_probabilities: (rows, k) float16
        log_rest: (rows,) float16, of the probability of all other tokens
    """

    token_ids: Tensor
    log_probabilities: Tensor
    log_rest: Tensor
    counts: tuple[int, ...]

    def of_samples(self, numbers: Sequence[int], device: torch.device) -> Targets:
        """Those of some samples, in that order."""
        ends = torch.tensor(self.counts).cumsum(0).tolist()
        rows = torch.cat(
            [torch.arange(ends[number] - self.counts[number], ends[number]) for number in numbers]
        )
        return Targets(
            self.token_ids[rows].to(device),
            self.log_probabilities[rows].to(device),
            self.log_rest[rows].to(device),
            tuple(self.counts[number] for number in numbers),
        )

    def rows(self, start: int, stop: int) -> Targets:
        """Some rows, whatever samples they are of."""
        part = slice(start, stop)
        return Targets(
            self.token_ids[part],
            self.log_probabilities[part],
            self.log_rest[part],
            (len(self.log_rest[part]),),
        )

    def state(self) -> dict[str, Tensor]:
        """The tensors, to be written to a file."""
        return {
            "token_ids": self.token_ids,
            "log_probabilities": self.log_probabilities,
            "log_rest": self.log_rest,
            "counts": torch.tensor(self.counts),
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Targets:
        """What ``state`` has given."""
        return cls(
            state["token_ids"],
            state["log_probabilities"],
            state["log_rest"],
            tuple(state["counts"].tolist()),
        )


def row_chunks(num_rows: int, vocab_size: int) -> list[tuple[int, int]]:
    """Rows of logits that may exist at once, as pairs of start and stop."""
    step = max(1, _LOGITS_AT_ONCE // vocab_size)
    return [(start, min(start + step, num_rows)) for start in range(0, num_rows, step)]


@torch.no_grad()
def measure_targets(walk: Walk, fixed: Weights, k: int) -> Targets:
    """The targets of a walk that has come to the end of the decoder, ``k`` tokens each."""
    k = min(k, walk.architecture.vocab_size)
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for batch, hidden in zip(walk.batches, walk.inputs(), strict=True):
        parts += _probable(walk.architecture, fixed, real_rows(batch, hidden, walk.device), k)
    columns = zip(*parts, strict=True)
    token_ids, log_probabilities, log_rest = (torch.cat(column) for column in columns)
    counts = [count for batch in walk.batches for count in batch.counts("decoder")]
    return Targets(token_ids, log_probabilities, log_rest, tuple(counts))


def real_rows(batch: WalkBatch, hidden: Tensor, device: torch.device) -> Tensor:
    """The decoder's hidden states of real tokens, sample by sample, (rows, hidden_size)."""
    return hidden.to(device)[batch.is_real("decoder").to(device)]


def _probable(
    architecture: Architecture, fixed: Weights, rows: Tensor, k: int
) -> list[tuple[Tensor, Tensor, Tensor]]:
    parts = []
    for start, stop in row_chunks(len(rows), architecture.vocab_size):
        logits = architecture.head(fixed, "decoder", rows[None, start:stop])[0]
        top, token_ids = logits.topk(k)
        total = logits.logsumexp(-1)
        rest = _rest(logits, token_ids) - total
        parts.append(
            (
                token_ids.to(torch.int32).cpu(),
                (top - total[:, None]).to(torch.float16).cpu(),
                rest.clamp(min=_LEAST_LOG).to(torch.float16).cpu(),
            )
        )
    return parts


def _rest(logits: Tensor, token_ids: Tensor) -> Tensor:
    """The logarithm of the sum over all tokens but these, (rows,); -inf where these are all."""
    if token_ids.shape[1] == logits.shape[1]:
        return torch.full_like(logits[:, 0], -torch.inf)
    return logits.scatter(1, token_ids, -torch.inf).logsumexp(-1)


def divergence(logits: Tensor, targets: Targets) -> Tensor:
    """The Kullback-Leibler divergence from the targets to what logits say, summed over rows.

    All tokens that the targets do not name count as one.

    Shapes:
        logits: (rows, vocab_size) float32
    Units:
        return: nats.
    """
    token_ids = targets.token_ids.to(torch.int64)
    total = logits.logsumexp(-1)
    own = logits.gather(1, token_ids) - total[:, None]
    own_rest = (_rest(logits, token_ids) - total).clamp(min=_LEAST_LOG)
    theirs = torch.cat(
        [targets.log_probabilities.float(), targets.log_rest.float()[:, None]], dim=1
    )
    theirs = theirs.log_softmax(-1)  # what float16 has rounded adds up to one again
    ours = torch.cat([own, own_rest[:, None]], dim=1)
    return (theirs.exp() * (theirs - ours)).sum()
