"""The baseline: interpolated character n-grams with modified Kneser-Ney discounts.

The n-grams of each order are kept as sorted integer arrays, so that 18 M characters take seconds.

    python training/ngram.py CORPUS.jsonl.xz  ->  one JSON object: bits per character by order
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from corpus import Chapter, read_corpus, split

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]

START = "\x00"  # before a chapter: only ever a history, never predicted


class NgramModel:
    """Counts of all orders up to ``order``; a character never seen shares a uniform floor.

    By order, lowest first: ``keys`` are the sorted ids of n-grams, ``counts`` their counts.
    """

    def __init__(self, text: str, order: int) -> None:
        self.order = order
        self.alphabet = {c: i for i, c in enumerate(sorted(set(text)))}
        self.size = len(self.alphabet) + 1  # one more for all that is unseen
        ids = self._ids(text)
        self.keys: list[Integers] = []
        self.counts: list[Integers] = []
        prefix = np.zeros(len(ids), dtype=np.int64)
        ranks: list[Integers] = []
        for n in range(1, order + 1):
            # An n-gram is (rank of its first n-1 characters, last character).
            packed = prefix[: len(ids) - n + 1] * self.size + ids[n - 1 :]
            keys, rank, counts = np.unique(packed, return_inverse=True, return_counts=True)
            self.keys.append(keys)
            self.counts.append(counts)
            ranks.append(rank)
            prefix = rank
        self._count_continuations(ranks)
        self._sum_histories()

    def _ids(self, text: str) -> Integers:
        unseen = self.size - 1
        return np.fromiter((self.alphabet.get(c, unseen) for c in text), np.int64, len(text))

    def _count_continuations(self, ranks: list[Integers]) -> None:
        """Below the top order count the different characters that stand before an n-gram."""
        for n in range(1, self.order):
            longer_rank = ranks[n]  # ranks of (n+1)-grams by position
            shorter_rank = ranks[n - 1][1 : 1 + len(longer_rank)]  # their last n characters
            first = np.unique(longer_rank, return_index=True)[1]
            self.counts[n - 1] = np.bincount(shorter_rank[first], minlength=len(self.keys[n - 1]))

    def _sum_histories(self) -> None:
        """Per history: sum of counts, and the mass that its discounts set free."""
        self.discounts: list[Reals] = []
        self.total: list[Reals] = []
        self.freed: list[Reals] = []
        for n in range(self.order):
            counts = self.counts[n]
            discounts = _discounts(counts)
            history = self.keys[n] // self.size  # rank of the (n-1)-gram before the last character
            width = len(self.keys[n - 1]) if n else 1
            taken = discounts[np.minimum(counts, 3)]
            self.discounts.append(discounts)
            self.total.append(_sums(history, counts, width))
            self.freed.append(_sums(history, taken, width))

    def bits(self, text: str) -> dict[int, float]:
        """Total bits of ``text`` by order; START costs nothing and is only ever a history."""
        predicted = self._ids(text) != self.alphabet.get(START, -1)
        return {
            n: float(-np.log2(probability[predicted]).sum())
            for n, probability in enumerate(self.probabilities(text), 1)
        }

    def probabilities(self, text: str) -> Iterator[Reals]:
        """Of every character given those before it, by order, lowest first."""
        ids = self._ids(text)
        probability = np.full(len(ids), 1.0 / self.size)
        history = np.zeros(len(ids), dtype=np.int64)  # rank of the history, -1 when never seen
        for n in range(self.order):
            known = history >= 0
            packed = history * self.size + ids
            at = np.minimum(np.searchsorted(self.keys[n], packed), len(self.keys[n]) - 1)
            found = known & (self.keys[n][at] == packed)
            count = np.where(found, self.counts[n][at], 0)
            total = np.where(known, self.total[n][np.maximum(history, 0)], 0)
            freed = np.where(known, self.freed[n][np.maximum(history, 0)], 0)
            kept = count - self.discounts[n][np.minimum(count, 3)]
            with np.errstate(divide="ignore", invalid="ignore"):
                mixed = (kept + freed * probability) / total
            probability = np.where(total > 0, mixed, probability)
            yield probability
            # The history of the next order at position i is the n-gram that ends at i - 1.
            rank = np.where(found, at, -1)
            history = np.concatenate([[-1], rank[:-1]])


def _sums(groups: Integers, values: Integers | Reals, width: int) -> Reals:
    sums: Reals = np.bincount(groups, weights=values, minlength=width).astype(np.float64)
    return sums


def _discounts(counts: Integers) -> Reals:
    """What is taken from a count of 0, 1, 2, and 3 or more (Chen and Goodman's estimate)."""
    n1, n2, n3, n4 = (max(int((counts == k).sum()), 1) for k in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    discounts: Reals = np.array([0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return discounts.clip(0, None)


def join(chapters: Iterable[Chapter]) -> str:
    """Chapters as one string, each begun by the mark."""
    return "".join(START + chapter.text for chapter in chapters)


def main() -> None:
    """Print bits per character on the held-out books by order."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--order", type=int, default=5)
    args = parser.parse_args()
    parts = split(list(read_corpus(args.corpus)))
    model = NgramModel(join(parts["train"]), args.order)
    rows = {}
    for part in ("valid", "test"):
        characters = sum(len(chapter.text) for chapter in parts[part])
        bits = model.bits(join(parts[part]))
        per_character = {n: round(b / characters, 4) for n, b in bits.items()}
        rows[part] = {"characters": characters, "bits_per_character": per_character}
    print(json.dumps(rows, ensure_ascii=False))


if __name__ == "__main__":
    main()
