"""The gradient of a whole model's loss by its small numbers, with one block in memory at a time.

Forward, only the hidden states between blocks are kept. On the way back every block is computed
once more, its weights made from integers and numbers again; what its numbers are to change by is
applied before the block before it is looked at, so that no gradient of the whole model exists.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor

from martlet.compression.fitted import FittedBlock, Numbers
from martlet.compression.teacher import Targets, divergence, real_rows, row_chunks
from martlet.compression.walk import Sample, Walk, WalkBatch
from martlet.models.architecture import FIXED, Architecture, Stack, stacks_of

__all__ = ["Student", "Update", "held_out_loss", "train_on"]

Update = Callable[[str, dict[str, Tensor]], None]
"""Called with (name of a block, gradients of its numbers on the computing device)."""

_HOST = torch.device("cpu")
_NO_LABEL = -100  # after the last token of a sample


@dataclass(frozen=True, eq=False)
class Student:
    """A compressed model whose integers are settled, and the numbers that are still trained.

    Blocks and numbers lie where they were given, on the device or in main memory; blocks compute on
    ``device`` in ``dtype``, and hidden states wait on ``kept_on``. ``rows_at_once`` samples go
    through a block together. ``cross_entropy`` is the share of the loss that is the text's own next
    tokens, the rest is the distance to the float model.
    """

    architecture: Architecture
    blocks: Mapping[str, FittedBlock]
    numbers: Mapping[str, Numbers]
    device: torch.device
    dtype: torch.dtype
    rows_at_once: int = 1
    cross_entropy: float = 0.0
    kept_on: torch.device = _HOST

    def open(self, name: str) -> OpenBlock:
        """A block on the device, to compute gradients with."""
        return OpenBlock(self.blocks[name], self.numbers[name], self.device, self.dtype)

    def dense(self, name: str) -> dict[str, Tensor]:
        """The float weights of a block on the device."""
        numbers = {key: number.to(self.device) for key, number in self.numbers[name].items()}
        with torch.no_grad():
            return self.blocks[name].dense(numbers, self.device, self.dtype)

    def walk(self, samples: Sequence[Sample]) -> Walk:
        """A walk through this model."""
        return Walk(
            self.architecture,
            samples,
            self.device,
            self.dtype,
            self.rows_at_once,
            kept_on=self.kept_on,
        )


class OpenBlock:
    """A block on the device, whose float weights gather gradients before its numbers do."""

    def __init__(
        self, block: FittedBlock, numbers: Numbers, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._leaves = {
            name: number.detach().to(device).requires_grad_() for name, number in numbers.items()
        }
        with torch.enable_grad():
            self._made = block.dense(self._leaves, device, dtype)
        self.weights = {
            name: weight.detach().requires_grad_(weight.requires_grad)
            for name, weight in self._made.items()
        }

    def gradients(self) -> dict[str, Tensor]:
        """Those of the numbers, from what has gathered at the weights."""
        pairs = [
            (self._made[name], weight.grad)
            for name, weight in self.weights.items()
            if weight.grad is not None
        ]
        if pairs:
            torch.autograd.backward([made for made, _ in pairs], [grad for _, grad in pairs])
        return {name: leaf.grad for name, leaf in self._leaves.items() if leaf.grad is not None}


def held_out_loss(student: Student, samples: Sequence[Sample], targets: Targets) -> float:
    """The loss of some samples in nats a token; nothing changes.

    ``targets`` are those of these samples.
    """
    with torch.no_grad():
        walk = student.walk(samples)
        fixed = student.dense(FIXED)
        _forward(student, walk, fixed)
        total = _Head(student, fixed, targets).total(walk)
    return total / sum(targets.counts)


def train_on(
    student: Student, samples: Sequence[Sample], targets: Targets, update: Update
) -> Tensor:
    """The loss of some samples, () float32 in nats a token; every block's numbers are updated."""
    walk = student.walk(samples)
    fixed = student.open(FIXED)
    inputs = _forward(student, walk, fixed.weights)
    head = _Head(student, fixed.weights, targets)
    gradients, loss = head.gradients(walk)
    for stack in reversed(stacks_of(student.architecture)):
        if stack == "encoder":
            gradients = _leave_encoder(student, walk, fixed, inputs[stack].pop(), gradients)
        walk.hold(fixed.weights)
        for batch in walk.batches:
            if batch.encoder_output is not None:
                batch.encoder_output = batch.encoder_output.detach().requires_grad_()
        gradients = _through_blocks(student, walk, stack, inputs[stack], gradients, update)
        _through_embedding(walk, stack, gradients)
        if stack == "decoder" and student.architecture.has_encoder:
            gradients = [_gradient_of(batch.encoder_output) for batch in walk.batches]
    update(FIXED, fixed.gradients())
    return loss


def _forward(
    student: Student, walk: Walk, fixed: Mapping[str, Tensor]
) -> dict[Stack, list[list[Tensor]]]:
    """What each block reads, by stack; and for the encoder what its final norm reads."""
    inputs: dict[Stack, list[list[Tensor]]] = {}
    for stack in stacks_of(student.architecture):
        walk.enter(fixed, stack)
        read = inputs[stack] = []
        for index in range(student.architecture.num_blocks(stack)):
            if torch.is_grad_enabled():
                read.append(walk.inputs())
            walk.run(stack, index, student.dense(f"{stack}.{index}"))
        if stack == "encoder":
            read.append(walk.inputs())
            walk.leave(fixed, stack)
    return inputs


class _Head:
    """The loss of final hidden states."""

    def __init__(self, student: Student, fixed: Mapping[str, Tensor], targets: Targets) -> None:
        self._student, self._fixed, self._targets = student, fixed, targets
        self._num_rows = sum(targets.counts)

    def total(self, walk: Walk) -> float:
        """Summed over all tokens; no gradients."""
        total = 0.0
        for batch, targets in self._parts(walk):
            rows = real_rows(batch, _there(batch.hidden), self._student.device)
            for start, stop, labels in self._chunks(batch, rows):
                total += float(self._loss(rows[start:stop], targets.rows(start, stop), labels))
        return total

    def gradients(self, walk: Walk) -> tuple[list[Tensor], Tensor]:
        """By the final hidden states, one a batch where they are kept; and the mean loss."""
        student = self._student
        gradients = []
        loss = torch.zeros((), device=student.device)
        for batch, targets in self._parts(walk):
            hidden = _there(batch.hidden).to(student.device)
            rows = real_rows(batch, hidden, student.device).detach().requires_grad_()
            for start, stop, labels in self._chunks(batch, rows):
                part = self._loss(rows[start:stop], targets.rows(start, stop), labels)
                part = part / self._num_rows
                part.backward()  # type: ignore[no-untyped-call]
                loss += part.detach()
            gradient = torch.zeros_like(hidden)
            gradient[batch.is_real("decoder").to(student.device)] = _there(rows.grad)
            gradients.append(gradient.to(student.kept_on))
        return gradients, loss

    def _parts(self, walk: Walk) -> list[tuple[WalkBatch, Targets]]:
        """The batches, each with its own targets."""
        parts, first = [], 0
        for batch in walk.batches:
            numbers = range(first, first + len(batch.samples))
            parts.append((batch, self._targets.of_samples(numbers, self._student.device)))
            first = numbers.stop
        return parts

    def _chunks(self, batch: WalkBatch, rows: Tensor) -> list[tuple[int, int, Tensor]]:
        """Which rows may have logits at once, and the tokens that follow them."""
        labels = _labels(batch).to(self._student.device)
        chunks = row_chunks(len(rows), self._student.architecture.vocab_size)
        return [(start, stop, labels[start:stop]) for start, stop in chunks]

    def _loss(self, rows: Tensor, targets: Targets, labels: Tensor) -> Tensor:
        share = self._student.cross_entropy
        logits = self._student.architecture.head(self._fixed, "decoder", rows[None])[0]
        loss = (1 - share) * divergence(logits, targets)
        if share:
            own = F.cross_entropy(logits, labels, ignore_index=_NO_LABEL, reduction="sum")
            loss = loss + share * own
        return loss


def _labels(batch: WalkBatch) -> Tensor:
    """The token after each real token of the decoder, (rows,) int64."""
    return torch.tensor(
        [token for sample in batch.samples for token in (*sample.decoder_ids[1:], _NO_LABEL)]
    )


def _through_blocks(
    student: Student,
    walk: Walk,
    stack: Stack,
    inputs: list[list[Tensor]],
    gradients: list[Tensor],
    update: Update,
) -> list[Tensor]:
    """From gradients of a stack's last hidden states to those of its first."""
    for index in reversed(range(student.architecture.num_blocks(stack))):
        name = f"{stack}.{index}"
        block = student.open(name)
        for number, (batch, read) in enumerate(zip(walk.batches, inputs.pop(), strict=True)):
            hidden = read.to(student.device).detach().requires_grad_()
            step, cache = walk.context(batch, stack)
            out = student.architecture.block(stack, index, block.weights, hidden, step, cache)
            out.backward(gradients[number].to(student.device))  # type: ignore[no-untyped-call]
            gradients[number] = _gradient_of(hidden).to(student.kept_on)
        update(name, block.gradients())
    return gradients


def _through_embedding(walk: Walk, stack: Stack, gradients: Sequence[Tensor]) -> None:
    for batch, gradient in zip(walk.batches, gradients, strict=True):
        hidden, _ = walk.embed(batch, stack)
        if hidden.requires_grad:
            hidden.backward(gradient.to(hidden.device))  # type: ignore[no-untyped-call]


def _leave_encoder(
    student: Student,
    walk: Walk,
    fixed: OpenBlock,
    inputs: Sequence[Tensor],
    gradients: Sequence[Tensor],
) -> list[Tensor]:
    """From gradients of the encoder's output to those before its final norm."""
    before = []
    for read, gradient in zip(inputs, gradients, strict=True):
        hidden = read.to(student.device).detach().requires_grad_()
        out = student.architecture.head(fixed.weights, "encoder", hidden)
        out.backward(gradient.to(student.device))  # type: ignore[no-untyped-call]
        before.append(_gradient_of(hidden).to(student.kept_on))
    for batch in walk.batches:
        batch.encoder_output = None
    return before


def _gradient_of(hidden: Tensor | None) -> Tensor:
    return _there(_there(hidden).grad)


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
