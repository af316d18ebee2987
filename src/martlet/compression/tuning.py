"""The small numbers of a compressed model, trained end to end towards the float model.

Integers stay; scales, zeros, norms and biases move. From time to time the loss of samples that are
never trained on is looked at: the best state is kept, the one before training included, and
training ends early when it has not got better for long.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from martlet.compression.block_training import cosine
from martlet.compression.end_to_end import Student, held_out_loss, train_on
from martlet.compression.fitted import Numbers
from martlet.compression.teacher import Targets
from martlet.compression.walk import Sample

__all__ = ["Look", "StateFile", "Tuning", "TuningResult", "TuningSettings"]

_BETAS = (0.9, 0.99)
_WARM_UP = 0.03  # of all iterations, in which the learning rate rises


class StateFile(Protocol):
    """Where an unfinished training is kept."""

    def load(self) -> dict[str, Any] | None:
        """The last state that was saved, None where there is none."""
        ...

    def save(self, state: dict[str, Any]) -> None:
        """Replace it; whoever is killed meanwhile leaves the old one or the new one."""
        ...


@dataclass(frozen=True)
class TuningSettings:
    """How long and how fast.

    ``batch_size`` samples make an iteration. Every ``look_every`` iterations the held-out samples
    are looked at; after ``patience`` looks without a better one training ends. Every
    ``save_every`` iterations the state is saved.

    Units:
        learning_rate: relative change of a number in one iteration, at the highest.
    """

    iterations: int
    learning_rate: float
    batch_size: int
    look_every: int
    patience: int
    save_every: int
    seed: int = 0


@dataclass(frozen=True)
class Look:
    """What was seen after some iterations.

    Units:
        train_loss: nats a token, mean since the last look; held_out_loss: nats a token.
    """

    iteration: int
    train_loss: float | None
    held_out_loss: float


@dataclass(frozen=True)
class TuningResult:
    """The best numbers by block, and how it went; the first look is before training."""

    numbers: dict[str, Numbers]
    looks: tuple[Look, ...]
    iterations: int

    @property
    def loss_before(self) -> float:
        """Of held-out samples, nats a token."""
        return self.looks[0].held_out_loss

    @property
    def loss_after(self) -> float:
        """Of held-out samples with the numbers that were kept, nats a token."""
        return min(look.held_out_loss for look in self.looks)


class Tuning:
    """A training that can be saved and taken up again.

    The last ``num_held_out`` samples are never trained on. The same seed, samples and settings
    give the same numbers, bit for bit on a processor, also when it was interrupted in between.
    """

    def __init__(
        self,
        student: Student,
        samples: Sequence[Sample],
        targets: Targets,
        num_held_out: int,
        settings: TuningSettings,
    ) -> None:
        assert 0 < num_held_out < len(samples)
        assert len(targets.counts) == len(samples)
        self._student, self._settings = student, settings
        self._samples, self._targets = samples, targets
        self._num_train = len(samples) - num_held_out
        self._optimizers = {
            name: torch.optim.Adam(list(numbers.values()), betas=_BETAS, fused=True)
            for name, numbers in student.numbers.items()
            if numbers
        }
        self._file: StateFile | None = None
        self._iteration = 0
        self._looks: list[Look] = []
        self._kept: dict[str, Numbers] = _copied(student.numbers)
        self._train_loss = torch.zeros((), device=student.device)

    def resume(self, file: StateFile) -> int:
        """Keep the state in ``file`` from now on, and go on from the one that is there.

        Returns how many iterations that has.
        """
        self._file = file
        state = file.load()
        if state is not None:
            self._restore(state)
        return self._iteration

    def run(self, progress: Callable[[int, float], None] | None = None) -> TuningResult:
        """Train to the end; ``progress`` hears of iterations done and the loss of the last look."""
        if not self._looks:
            self._look(0)
        settings = self._settings
        while self._iteration < settings.iterations and not self._is_over():
            self._step()
            done = self._iteration
            if done % settings.look_every == 0 or done == settings.iterations:
                self._look(done - self._looks[-1].iteration)
            if self._file is not None and done % settings.save_every == 0:
                self._file.save(self._state())
            if progress is not None:
                progress(done, self._looks[-1].held_out_loss)
        return TuningResult(self._kept, tuple(self._looks), self._iteration)

    def _step(self) -> None:
        settings = self._settings
        rate = settings.learning_rate * self._share()
        chosen = self._chosen()
        samples = [self._samples[number] for number in chosen]
        targets = self._targets.of_samples(chosen, torch.device("cpu"))

        def update(name: str, gradients: dict[str, Tensor]) -> None:
            if name not in self._optimizers:
                return
            for key, number in self._student.numbers[name].items():
                gradient = gradients.get(key)
                number.grad = None if gradient is None else gradient.to(number.device)
            optimizer = self._optimizers[name]
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

        self._train_loss += train_on(self._student, samples, targets, update)
        self._iteration += 1

    def _share(self) -> float:
        """Of the learning rate: up along a line, down along a cosine."""
        warm_up = max(1, round(self._settings.iterations * _WARM_UP))
        if self._iteration < warm_up:
            return (self._iteration + 1) / warm_up
        return cosine(self._iteration - warm_up, self._settings.iterations - warm_up)

    def _chosen(self) -> list[int]:
        """The samples of this iteration: all in turn, shuffled anew each time they are through."""
        size = self._settings.batch_size
        first = self._iteration * size
        chosen: list[int] = []
        while len(chosen) < size:
            times, place = divmod(first + len(chosen), self._num_train)
            random = torch.Generator().manual_seed(self._settings.seed * 1_000_003 + times)
            order = torch.randperm(self._num_train, generator=random).tolist()
            chosen += order[place : place + size - len(chosen)]
        return chosen

    def _look(self, since: int) -> None:
        held_out = range(self._num_train, len(self._samples))
        targets = self._targets.of_samples(held_out, torch.device("cpu"))
        loss = held_out_loss(self._student, self._samples[self._num_train :], targets)
        train_loss = float(self._train_loss) / since if since else None
        self._train_loss.zero_()
        if self._looks and loss < min(look.held_out_loss for look in self._looks):
            self._kept = _copied(self._student.numbers)
        self._looks.append(Look(self._iteration, train_loss, loss))

    def _is_over(self) -> bool:
        losses = [look.held_out_loss for look in self._looks]
        return len(losses) - 1 - losses.index(min(losses)) >= self._settings.patience

    def _state(self) -> dict[str, Any]:
        return {
            "iteration": self._iteration,
            "looks": [asdict(look) for look in self._looks],
            "train_loss": self._train_loss.cpu(),
            "numbers": self._student.numbers,
            "kept": self._kept,
            "optimizers": {name: adam.state_dict() for name, adam in self._optimizers.items()},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        self._iteration = state["iteration"]
        self._looks = [Look(**look) for look in state["looks"]]
        self._train_loss.copy_(state["train_loss"])
        for own, saved in ((self._student.numbers, state["numbers"]), (self._kept, state["kept"])):
            for name, numbers in own.items():
                for key, number in numbers.items():
                    number.copy_(saved[name][key])
        for name, adam in self._optimizers.items():
            adam.load_state_dict(state["optimizers"][name])


def _copied(numbers: Mapping[str, Numbers]) -> dict[str, Numbers]:
    return {
        name: {key: number.clone() for key, number in own.items()} for name, own in numbers.items()
    }
