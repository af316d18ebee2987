"""What each model learns from, and how it is measured on held-out books while it trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own documentation calls it F
from torch import Tensor, nn

from batches import (
    IGNORE,
    Dialogues,
    Example,
    Examples,
    Source,
    Stream,
    clause_marks,
    collate,
    fill_example,
    gen_example,
    loader,
    turn_example,
)
from nets import GPT2
from shapes import CONFIGS, GPT2Config

Batch = tuple[Tensor, ...]
Forward = Callable[..., Tensor]  # a model, compiled or not
Loss = Callable[[], Tensor]
FORMS = ("found", "quoted")
HELD_OUT_BATCH, HELD_OUT_BATCHES = 128, 4
CHAT_PHASE = 0.45  # share of the training after which the speaker sees mostly dialogue


@dataclass(frozen=True)
class Run:
    """What one training run reads, and how much of it at a time."""

    model: str
    prepared: Path
    batch: int
    length: int  # tokens of a writer's window
    workers: int
    teacher: Path | None
    device: str

    def autocast(self) -> torch.autocast:
        """Mixed precision on a GPU, plain float32 elsewhere."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda")

    def compiled(self, model: nn.Module) -> Forward:
        """The model as one graph where that pays."""
        compiled: Forward = torch.compile(model) if self.device == "cuda" else model
        return compiled


class Objective(Protocol):
    """The losses of one model's training and its measure on held-out books."""

    def losses(self, forward: Forward, fraction: Callable[[int], float]) -> Iterator[Loss]:
        """An endless row of closures, each computing the loss of one batch.

        ``fraction`` tells how much of the training is over at a step.
        """

    def held_out_bits(self, model: nn.Module) -> dict[str, float]:
        """Bits per token by kind of example."""


def objective(run: Run) -> Objective:
    """The objective of a model, by its name."""
    return Continuing(run) if run.model.startswith("cpm1") else Answering(run)


class Continuing:
    """The writer's: the next token of a window, told by the text and perhaps by a teacher."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.held_out = Stream.load(run.prepared / "cpm1-mini-valid-found.npz")

    def losses(self, forward: Forward, fraction: Callable[[int], float]) -> Iterator[Loss]:
        """See Objective."""
        run = self.run
        streams = [Stream.load(run.prepared / f"cpm1-mini-train-{form}.npz") for form in FORMS]
        teacher = run.compiled(load_teacher(run.teacher, run.device)) if run.teacher else None
        for ids, labels in writer_windows(streams, run):
            if teacher is None:
                yield partial(_loss, forward, (ids,), labels)
                continue
            with torch.no_grad(), run.autocast():
                taught = teacher(ids)
            yield partial(_taught_loss, forward, ids, taught, labels)

    @torch.no_grad()
    def held_out_bits(self, model: nn.Module) -> dict[str, float]:
        """Windows with half overlap, the second half counted."""
        model.eval()
        length, half = self.run.length, self.run.length // 2
        ids = torch.from_numpy(self.held_out.ids[: 60 * length]).to(self.run.device)
        total = count = 0.0
        for part in torch.split(ids.unfold(0, length + 1, half), 32):
            with self.run.autocast():
                logits = model(part[:, :-1]).float()
            loss = cross_entropy(logits[:, half:], part[:, 1 + half :])
            total, count = total + loss.item() * len(part), count + len(part)
        model.train()
        return {"valid_bits": total / count / math.log(2)}


class Answering:
    """The filler's and the speaker's: the target that belongs to a source."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.held_out = {kind: self._batches(make) for kind, make in self._held_out_kinds().items()}

    def _held_out_kinds(self) -> dict[str, Callable[[], Example]]:
        model, folder = self.run.model, self.run.prepared
        rng = np.random.default_rng(0)
        if model == "eva-mini":
            talk = Dialogues.load(folder / "eva-mini-valid-dialogues.npz")
            return {"turn": lambda: turn_example(rng, talk)}
        stream = Stream.load(folder / f"{model}-valid-quoted.npz")
        marks = clause_marks(model)
        return {
            "fill": lambda: fill_example(rng, stream, marks),
            "continue": lambda: gen_example(rng, stream),
        }

    def _batches(self, make: Callable[[], Example]) -> list[Batch]:
        """Fixed examples, the same in every evaluation."""
        rows = [collate([make() for _ in range(HELD_OUT_BATCH)]) for _ in range(HELD_OUT_BATCHES)]
        return [tuple(torch.from_numpy(a).to(self.run.device) for a in row) for row in rows]

    def losses(self, forward: Forward, fraction: Callable[[int], float]) -> Iterator[Loss]:
        """See Objective."""
        for *inputs, labels in self._training_batches(fraction):
            yield partial(_loss, forward, inputs, labels)

    def _training_batches(self, fraction: Callable[[int], float]) -> Iterator[Batch]:
        run = self.run
        prose = Source(run.model, run.prepared, run.batch)
        rows = iter(loader(Examples(prose, seed=1), run.workers))
        is_late = run.model != "eva-mini"  # only the speaker has a second phase
        step = 0
        while True:
            if not is_late and fraction(step) > CHAT_PHASE:
                talk = Source(run.model, run.prepared, run.batch, talk_share=0.85)
                rows = iter(loader(Examples(talk, seed=2), run.workers))
                is_late = True
            batch = (torch.as_tensor(a) for a in next(rows))
            yield tuple(a.to(run.device, non_blocking=True) for a in batch)
            step += 1

    @torch.no_grad()
    def held_out_bits(self, model: nn.Module) -> dict[str, float]:
        """Mean of the batches, by kind."""
        model.eval()
        bits = {}
        for kind, batches in self.held_out.items():
            losses = []
            for source, mask, target, labels in batches:
                with self.run.autocast():
                    losses.append(cross_entropy(model(source, mask, target), labels).item())
            bits[f"valid_{kind}_bits"] = sum(losses) / len(losses) / math.log(2)
        model.train()
        return bits


def writer_windows(streams: list[Stream], run: Run) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows gathered on the device, as many of each stream; half of them begin at a sentence."""
    device = run.device
    ids = [torch.from_numpy(s.ids.astype(np.int32)).to(device) for s in streams]
    starts = [torch.from_numpy(s.starts).to(device) for s in streams]
    at = torch.arange(run.length + 1, device=device)
    generator = torch.Generator(device).manual_seed(1)
    n = run.batch // len(streams)
    while True:
        parts = []
        for text, begin in zip(ids, starts, strict=True):
            last = len(text) - run.length - 1
            pick = torch.randint(len(begin), (n,), device=device, generator=generator)
            anywhere = torch.randint(last, (n,), device=device, generator=generator)
            coin = torch.rand(n, device=device, generator=generator) < 0.5
            first = torch.where(coin, begin[pick].clamp(max=last), anywhere)
            parts.append(text[first[:, None] + at])
        window = torch.cat(parts).long()
        yield window[:, :-1], window[:, 1:]


def load_teacher(folder: Path, device: str) -> nn.Module:
    """The large writer that train.py has saved."""
    config = CONFIGS["cpm1-teacher"]
    assert isinstance(config, GPT2Config)
    state = torch.load(folder / "state.pt", map_location=device, weights_only=True)
    model = GPT2(config).to(device)
    model.load_state_dict({k: v.float() for k, v in state.items()})
    return model.eval()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Nats per label that counts."""
    return F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE)


def distilled(logits: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """Part the text itself, the larger part what the teacher expects in its place."""
    expected = taught.float().softmax(-1)
    told = -(expected * logits.float().log_softmax(-1)).sum(-1).mean()
    return 0.35 * cross_entropy(logits, labels) + 0.65 * told


def _loss(forward: Forward, inputs: Sequence[Tensor], labels: Tensor) -> Tensor:
    return cross_entropy(forward(*inputs), labels)


def _taught_loss(forward: Forward, ids: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    return _distilled(forward(ids), taught, labels)


_distilled: Forward = torch.compile(distilled, disable=not torch.cuda.is_available())
