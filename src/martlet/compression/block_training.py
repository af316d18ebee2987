"""One block learns to give what the float block gives, though its integers are few.

Its inputs are what the compressed blocks before it give, its target is the output of the float
block on the inputs that the float model has. Integers are trained by rounding straight through,
together with scales, zeros, norms and biases.

Source:
    Li et al. 2021 (BRECQ), section 3.2: reconstruction of whole blocks; Chen et al. 2024
    (EfficientQAT), section 3.2: all weights of a block trained at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from martlet.compression.fitted import LEVELS, FittedBlock
from martlet.compression.walk import Walk, WalkBatch
from martlet.models.architecture import Stack
from martlet.quantization.scheme import StoredWeight

__all__ = [
    "LEVEL_BYTES",
    "BlockResult",
    "BlockSettings",
    "BlockTask",
    "Progress",
    "cosine",
    "train_block",
]

Progress = Callable[[int, float], None]
"""Called with (iterations done in the block, loss of the last)."""

_LOOKS = 8  # at the held-out samples while a block is trained
_ITERATIONS_BETWEEN_REPORTS = 8  # each makes a GPU wait
_BETAS = (0.9, 0.99)  # few steps: the older ones must not weigh long

LEVEL_BYTES = 20
"""Of a trained integer: its level, the best one, the gradient, two moments, each float32."""


@dataclass(frozen=True)
class BlockSettings:
    """How long and how fast a block is trained.

    ``max_trained_bytes`` bounds the memory of levels and their gradients and moments; a block that
    needs more has its matrices trained in turns, which share the iterations.

    Units:
        rounding_rate: levels a step, at the beginning; it falls to zero along a cosine.
        scale_rate: relative change of scales, zeros, norms and biases a step.
    """

    iterations: int
    rounding_rate: float
    scale_rate: float
    seed: int = 0
    max_trained_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class BlockTask:
    """A block to train: ``walk`` stands before it with the student's hidden states.

    ``latents`` holds the float matrices whose integers are trained. The last ``num_held_out``
    batches are never trained on, they decide which state is kept.

    Shapes:
        targets: one a batch, (batch, num_tokens, hidden_size)
    """

    walk: Walk
    stack: Stack
    index: int
    weights: Mapping[str, StoredWeight]
    latents: Mapping[str, Tensor]
    targets: Sequence[Tensor]
    num_held_out: int


@dataclass(frozen=True)
class BlockResult:
    """A trained block, on the host, never farther from its target than it was.

    Units:
        error_before, error_after: mean squared distance to the target on held-out samples, as a
            share of the target's mean square.
    """

    weights: dict[str, StoredWeight]
    error_before: float
    error_after: float


def train_block(
    task: BlockTask, settings: BlockSettings, progress: Progress | None = None
) -> BlockResult:
    """Train the block and round it for good."""
    turns = _turns(task, settings.max_trained_bytes)
    weights = dict(task.weights)
    errors: list[float] = []
    for number, names in enumerate(turns):
        own = [settings.iterations * part // len(turns) for part in (number, number + 1)]
        fitted = FittedBlock(
            {name: weight.to(task.walk.device) for name, weight in weights.items()},
            {name: task.latents[name] for name in names},
            frozen=[name for name in task.latents if name not in names],
        )
        training = _Training(task, fitted, settings)
        before, after, weights = training.run(own[0], own[1], progress)
        errors += [before, after]
    return BlockResult(weights, errors[0], errors[-1])


def cosine(done: int, total: int) -> float:
    """The share of a learning rate that is left: 1 at the beginning, 0 at the end."""
    return 0.5 * (1.0 + math.cos(math.pi * done / max(1, total)))


def _turns(task: BlockTask, max_bytes: int | None) -> list[list[str]]:
    """The matrices in groups that can be trained at once, each as large as memory allows."""
    turns: list[list[str]] = [[]]
    filled = 0
    for name, latent in task.latents.items():
        nbytes = latent.numel() * LEVEL_BYTES
        if turns[-1] and max_bytes is not None and filled + nbytes > max_bytes:
            turns.append([])
            filled = 0
        turns[-1].append(name)
        filled += nbytes
    return turns


class _Training:
    """The numbers of a block on their way."""

    def __init__(self, task: BlockTask, fitted: FittedBlock, settings: BlockSettings) -> None:
        self._task, self._fitted, self._settings = task, fitted, settings
        self._device, self._dtype = task.walk.device, task.walk.dtype
        self._inputs = task.walk.inputs()
        self._numbers = fitted.start(self._device)
        levels = [n for name, n in self._numbers.items() if name.endswith(f":{LEVELS}")]
        others = [n for name, n in self._numbers.items() if not name.endswith(f":{LEVELS}")]
        self._rates = (settings.rounding_rate, settings.scale_rate)
        self._optimizer = torch.optim.Adam(
            [{"params": levels}, {"params": others}], betas=_BETAS, fused=True
        )
        held_out = len(task.targets) - task.num_held_out
        self._train, self._held_out = range(held_out), range(held_out, len(task.targets))
        self._power = self._mean_square()

    def run(
        self, first: int, last: int, progress: Progress | None
    ) -> tuple[float, float, dict[str, StoredWeight]]:
        """Iterations ``first`` to ``last`` of the block: error before and after, the weights."""
        before = best = self._held_out_error()
        kept = {name: number.clone() for name, number in self._numbers.items()}
        total = last - first
        looks = {total * look // _LOOKS for look in range(1, _LOOKS + 1)}
        order = self._order(first, total)
        for done in range(total):
            loss = self._step(order[done], cosine(done, total))
            if done + 1 in looks:
                error = self._held_out_error()
                if error < best:
                    best = error
                    for name, number in self._numbers.items():
                        kept[name].copy_(number.detach())
            if progress is not None and (done + 1) % _ITERATIONS_BETWEEN_REPORTS == 0:
                progress(first + done + 1, float(loss))
        return before, best, self._fitted.settled(kept)

    def _mean_square(self) -> float:
        """Of the held-out targets: what errors are a share of."""
        task = self._task
        pairs = [
            _square(task.targets[i], None, task.walk.batches[i], task.stack) for i in self._held_out
        ]
        total = math.fsum(float(square) for square, _ in pairs)
        return max(total / sum(count for _, count in pairs), 1e-30)

    def _order(self, first: int, total: int) -> list[int]:
        """Which batch each iteration sees: all of them, shuffled anew each time they are through.

        A block of a stack has an order of its own, also when it is trained by itself.
        """
        is_decoder = self._task.stack == "decoder"
        place = (self._task.index * 2 + is_decoder) * 1_000_003 + first
        random = torch.Generator().manual_seed(self._settings.seed * 1_000_000_007 + place)
        order: list[int] = []
        while len(order) < total:
            order += torch.randperm(len(self._train), generator=random).tolist()
        return order

    def _step(self, number: int, share: float) -> Tensor:
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        for tensor in self._numbers.values():
            tensor.requires_grad_()
            tensor.grad = None
        dense = self._fitted.dense(self._numbers, self._device, self._dtype)
        distance, count = self._distance(number, dense)
        loss = distance / (count * self._power)
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimizer.step()
        with torch.no_grad():
            self._fitted.keep_inside(self._numbers)
        return loss.detach()

    @torch.no_grad()
    def _held_out_error(self) -> float:
        dense = self._fitted.dense(self._numbers, self._device, self._dtype)
        pairs = [self._distance(number, dense) for number in self._held_out]
        total = math.fsum(float(distance) for distance, _ in pairs)
        return total / sum(count for _, count in pairs) / self._power

    def _distance(self, number: int, dense: Mapping[str, Tensor]) -> tuple[Tensor, int]:
        """The squared distance of a batch to its target over real tokens, and their numbers."""
        task = self._task
        batch = task.walk.batches[number]
        step, cache = task.walk.context(batch, task.stack)
        hidden = self._inputs[number].to(self._device)
        out = task.walk.architecture.block(task.stack, task.index, dense, hidden, step, cache)
        return _square(out, task.targets[number].to(self._device), batch, task.stack)


def _square(
    out: Tensor, target: Tensor | None, batch: WalkBatch, stack: Stack
) -> tuple[Tensor, int]:
    """Sum of squares of the real tokens, float32, and how many numbers it is of."""
    wide = out.float() if target is None else out.float() - target.float()
    # A product with zeros: to pick rows by a mask would make a GPU wait for the host.
    is_real = batch.is_real(stack).to(out.device)
    square = (wide * is_real[..., None]).square().sum()
    return square, sum(batch.counts(stack)) * out.shape[-1]
