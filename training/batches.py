"""Training examples: windows for the writer, spans for the filler, turns for the speaker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from prepare import tokenizer_of

Ids = NDArray[np.int64]
Example = tuple[list[int], list[int]]  # source, target
Arrays = tuple[NDArray[Any], ...]  # source, source mask, target, labels

IGNORE = -100
CPM2_S, CPM2_EOD, CPM2_SENTINEL, CPM2_LAST = 1, 7, 26050, 26239
EVA_SEP, EVA_EOD, EVA_SENTINEL = 4, 7, 29810
SOURCE_LEN, TARGET_LEN = 224, 112
MAX_SPANS = 16
LONG_TURN = 56  # tokens; speeches beyond it are taken three times less often


@dataclass(frozen=True)
class Stream:
    """One tokenised text: ids, and where sentences begin."""

    ids: Ids
    starts: Ids

    @classmethod
    def load(cls, path: Path) -> Stream:
        """Read what prepare.py wrote."""
        with np.load(path) as data:
            return cls(data["ids"].astype(np.int64), data["starts"])

    def place(self, rng: np.random.Generator, room: int) -> int:
        """Where a window of ``room`` tokens begins: mostly at a sentence."""
        last = len(self.ids) - room - 1
        if rng.random() < 0.7:
            return min(int(self.starts[rng.integers(len(self.starts))]), last)
        return int(rng.integers(last))


@dataclass(frozen=True)
class Dialogues:
    """Turns end to end, with the borders of turns and of dialogues."""

    turns: Ids
    turn_ends: Ids
    run_ends: Ids

    @classmethod
    def load(cls, path: Path) -> Dialogues:
        """Read what prepare.py wrote."""
        with np.load(path) as data:
            return cls(data["turns"].astype(np.int64), data["turn_ends"], data["run_ends"])

    def turn(self, index: int) -> Ids:
        """The tokens of one turn."""
        return self.turns[self.turn_ends[index - 1] if index else 0 : self.turn_ends[index]]


def pieces(
    rng: np.random.Generator, window: Ids, clause_ends: NDArray[np.bool_]
) -> list[tuple[int, int]]:
    """Spans to hide: a word, a phrase or a clause each; about 15 % of the tokens, at most 16."""
    n = len(window)
    mean = (2, 4, 8)[rng.choice(3, p=[0.35, 0.4, 0.25])]
    count = int(np.clip(round(n * rng.choice([0.08, 0.15, 0.2]) / mean), 1, MAX_SPANS))
    if rng.random() < 0.35:
        clauses = _clauses(np.flatnonzero(clause_ends[window]))
        if clauses:
            chosen = rng.choice(len(clauses), size=min(count, len(clauses)), replace=False)
            return [clauses[i] for i in sorted(chosen)]
    lengths = np.clip(rng.geometric(1.0 / mean, size=count), 1, 16)
    begin = np.sort(rng.choice(n, size=min(count, n), replace=False))
    spans: list[tuple[int, int]] = []
    for start, length in zip(begin, lengths, strict=False):
        if spans and start <= spans[-1][1]:
            continue
        if start + length <= n:
            spans.append((int(start), int(start + length)))
    return spans or [(0, 1)]


def _clauses(marks: Ids) -> list[tuple[int, int]]:
    """What lies between two punctuation marks, when it is short enough to hide."""
    return [(int(a) + 1, int(b)) for a, b in pairwise(marks) if 1 <= b - a - 1 <= 14]


def fill_example(
    rng: np.random.Generator, stream: Stream, clause_ends: NDArray[np.bool_]
) -> Example:
    """Source with sentinels, target <s> <s_0> span <s_1> span ... last sentinel."""
    room = int(rng.integers(24, SOURCE_LEN - 8))
    at = stream.place(rng, room)
    window = stream.ids[at : at + room]
    eod = np.flatnonzero(window == CPM2_EOD)
    if len(eod) and eod[0] > 16:
        window = window[: eod[0]]
    elif len(eod):
        window = window[eod[-1] + 1 :]
    if len(window) < 8:
        return gen_example(rng, stream)
    return hide(window, pieces(rng, window, clause_ends))


def hide(window: Ids, spans: Sequence[tuple[int, int]]) -> Example:
    """Put a sentinel for each span, as many as the target has room for."""
    source: list[int] = []
    target: list[int] = [CPM2_S]
    last = hidden = 0
    for start, end in spans:
        if len(target) + end - start + 2 > TARGET_LEN:
            break
        sentinel = CPM2_SENTINEL + hidden
        source += [*window[last:start].tolist(), sentinel]
        target += [sentinel, *window[start:end].tolist()]
        last = end
        hidden += 1
    source += window[last:].tolist()
    target.append(CPM2_SENTINEL + hidden)
    return source[:SOURCE_LEN], target


def gen_example(rng: np.random.Generator, stream: Stream) -> Example:
    """Source: text, <s_189>; target: <s> <s_189> what follows, to <eod> where the chapter ends."""
    before, after = int(rng.integers(4, SOURCE_LEN - 2)), TARGET_LEN - 2
    at = stream.place(rng, before + after)
    window = stream.ids[at : at + before + after]
    source, rest = window[:before], window[before:]
    cut = np.flatnonzero(source == CPM2_EOD)
    if len(cut):
        source = source[cut[-1] + 1 :]
    end = np.flatnonzero(rest == CPM2_EOD)
    if len(end):
        rest = rest[: end[0] + 1]
    return [*source.tolist(), CPM2_LAST], [CPM2_S, CPM2_LAST, *rest.tolist()]


def continue_example(rng: np.random.Generator, stream: Stream) -> Example:
    """The speaker's first lessons: text and <s_1>; target: <s_1> and what follows."""
    source, target = gen_example(rng, stream)
    return [*source[:-1], EVA_SENTINEL + 1], [EVA_SENTINEL + 1, *target[2:]]


def turn_example(rng: np.random.Generator, talk: Dialogues) -> Example:
    """Source: turns, each closed by <sep>, then <s_0>; target: <s_0> the next turn <sep>."""
    reply, first = _reply(rng, talk)
    wanted = 1 if rng.random() < 0.35 else int(rng.integers(1, 7))
    source: list[int] = [EVA_SENTINEL]
    for index in range(reply - 1, max(first, reply - wanted) - 1, -1):
        turn = [*talk.turn(index).tolist(), EVA_SEP]
        if len(source) + len(turn) > SOURCE_LEN:
            break
        source = turn + source
    return source, [EVA_SENTINEL, *talk.turn(reply)[: TARGET_LEN - 2].tolist(), EVA_SEP]


def _reply(rng: np.random.Generator, talk: Dialogues) -> tuple[int, int]:
    """A turn that answers another, and the first turn of its dialogue; long ones less often."""
    while True:
        reply = int(rng.integers(1, len(talk.turn_ends)))
        run = int(np.searchsorted(talk.run_ends, reply, side="right"))
        first = int(talk.run_ends[run - 1]) if run else 0
        length = talk.turn_ends[reply] - talk.turn_ends[reply - 1]
        if reply > first and (length <= LONG_TURN or rng.random() < 0.3):
            return reply, first


def clause_marks(model: str) -> NDArray[np.bool_]:
    """Which token ids are punctuation marks that end a clause."""
    tokenizer = tokenizer_of(model)
    marks = np.zeros(1 << 16, dtype=bool)
    for mark in "，。？！；：、”“":
        marks[tokenizer.encode(mark)] = True
    marks[tokenizer.special.unk] = False
    return marks


@dataclass(frozen=True)
class Source:
    """Where an encoder-decoder model's training examples come from."""

    model: str
    folder: Path
    batch: int
    talk_share: float = 0.3  # of the speaker's examples; the rest continues prose


class Examples(IterableDataset[Arrays]):
    """Endless training batches as (source, source mask, target, labels)."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed

    def _load(self) -> None:
        """Read the files; in the worker, so that nothing large is sent to it."""
        model, folder = self.source.model, self.source.folder
        forms = ("found", "quoted")
        self.streams = [Stream.load(folder / f"{model}-train-{form}.npz") for form in forms]
        if model == "cpm2-mini":
            self.clause_ends = clause_marks(model)
        else:
            self.talk = Dialogues.load(folder / "eva-mini-train-dialogues.npz")

    def example(self, rng: np.random.Generator) -> Example:
        """One example of a kind that the model is trained for."""
        stream = self.streams[int(rng.integers(2))]
        if self.source.model == "cpm2-mini":
            if rng.random() < 0.8:
                return fill_example(rng, stream, self.clause_ends)
            return gen_example(rng, stream)
        if rng.random() < self.source.talk_share:
            return turn_example(rng, self.talk)
        return continue_example(rng, stream)

    def __iter__(self) -> Iterator[Arrays]:
        self._load()
        info = get_worker_info()
        rng = np.random.default_rng((self.seed, info.id if info else 0))
        while True:
            yield collate([self.example(rng) for _ in range(self.source.batch)])


def collate(examples: Sequence[Example]) -> Arrays:
    """Pad to the fixed lengths (fixed, so that one compiled graph serves)."""
    n = len(examples)
    source = np.zeros((n, SOURCE_LEN), np.int64)
    mask = np.zeros((n, SOURCE_LEN), bool)
    target = np.zeros((n, TARGET_LEN), np.int64)
    labels = np.full((n, TARGET_LEN), IGNORE, np.int64)
    for i, (s, t) in enumerate(examples):
        source[i, : len(s)], mask[i, : len(s)] = s, True
        target[i, : len(t) - 1], labels[i, : len(t) - 1] = t[:-1], t[1:]
    return source, mask, target, labels


def loader(examples: Examples, workers: int) -> DataLoader[Arrays]:
    """The batches, made ahead in ``workers`` processes."""
    return DataLoader(
        examples,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=8 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
