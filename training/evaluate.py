"""Held-out figures and uncurated samples of the bundled models, and the model cards made of them.

    python training/evaluate.py CORPUS.jsonl.xz [--models cpm1-mini ...] [--training OUTPUT_FOLDER]

Everything is measured through the public package on the int8 models as they ship, on the books in
``corpus.TEST_BOOKS``, next to character n-grams counted on the same training text. Writes
benchmarks/results/zoo-quality.json and README.md into each model's folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import martlet
from batches import CPM2_SENTINEL, Stream, clause_marks, fill_example
from card import write_card
from corpus import NOT_VERNACULAR, Chapter, dialogues, read_corpus, restore_quotes, split
from export import CARDS
from martlet.bench.record import checkout_commit
from martlet.engine.request import Context
from ngram import NgramModel, join
from prepare import ZOO, sentence_starts

RESULTS = Path(__file__).parents[1] / "benchmarks/results/zoo-quality.json"
SEED = 1
NUM_PASSAGES = 300
NUM_REPLIES = 500
ORDERS = (3, 4, 5)
NATS_PER_BIT = math.log(2)

Measure = Callable[[martlet.Model, list[Chapter], NgramModel], dict[str, Any]]


def writer_figures(model: martlet.Model, test: list[Chapter], ngrams: NgramModel) -> dict[str, Any]:
    """Bits per character of the test books, and those of the n-grams."""
    characters = sum(len(chapter.text) for chapter in test)
    bits = ngrams.bits(join(test))
    score = model.score_text("\n".join(chapter.text for chapter in test))
    best = min(bits[order] / characters for order in ORDERS)
    return {
        "test_characters": characters,
        "bits_per_character": score.bits_per_character,
        "ngram_bits_per_character": {order: bits[order] / characters for order in ORDERS},
        "fewer_bits": 1 - score.bits_per_character / best,
    }


def fill_figures(model: martlet.Model, test: list[Chapter], ngrams: NgramModel) -> dict[str, Any]:
    """Bits per hidden character, and how often the likeliest answer is what the author wrote."""
    marks = clause_marks("cpm2-mini")
    ids = np.concatenate([[*model.tokenizer.encode(restore_quotes(c.text)), 7] for c in test])
    stream = Stream(ids, sentence_starts(ids.astype(np.uint16), "cpm2-mini"))
    rng = np.random.default_rng(SEED)
    bits = 0.0
    baseline = dict.fromkeys(ORDERS, 0.0)
    characters = blanks = same = 0
    for _ in range(NUM_PASSAGES):
        source, target = fill_example(rng, stream, marks)
        if CPM2_SENTINEL not in source:
            continue
        sequence = model.generator.start(Context((target[0],), tuple(source)), len(target), None)
        rows = sequence.advance(target[:-1], last_only=False).log_softmax(-1)
        hidden = [t < CPM2_SENTINEL for t in target[1:]]
        chosen = rows[np.arange(len(target) - 1), target[1:]].numpy()
        bits -= float(chosen[hidden].sum()) / NATS_PER_BIT
        spans = _spans(target)
        pieces = _texts(model, source)
        answers = [model.tokenizer.decode(span) for span in spans]
        guess = model.fill(pieces, temperature=0, max_tokens=160).blanks
        blanks += len(answers)
        same += sum(g.text == a for g, a in zip(guess, answers, strict=True))
        before = pieces[0]
        for answer, after in zip(answers, pieces[1:], strict=True):
            known = ngrams.bits("\x00" + before)
            full = ngrams.bits("\x00" + before + answer)
            for order in ORDERS:
                baseline[order] += full[order] - known[order]
            characters += len(answer)
            before += answer + after
    return {
        "passages": NUM_PASSAGES,
        "hidden_characters": characters,
        "bits_per_hidden_character": bits / characters,
        "ngram_bits_per_hidden_character": {n: b / characters for n, b in baseline.items()},
        "fewer_bits": 1 - bits / min(baseline.values()),
        "blanks": blanks,
        "exactly_as_the_author": same / blanks,
    }


def _spans(target: list[int]) -> list[list[int]]:
    spans: list[list[int]] = []
    for token in target[1:-1]:
        if token >= CPM2_SENTINEL:
            spans.append([])
        else:
            spans[-1].append(int(token))
    return spans


def _texts(model: martlet.Model, source: list[int]) -> list[str]:
    pieces: list[list[int]] = [[]]
    for token in source:
        if token >= CPM2_SENTINEL:
            pieces.append([])
        else:
            pieces[-1].append(int(token))
    return [model.tokenizer.decode(piece) for piece in pieces]


def turn_figures(model: martlet.Model, test: list[Chapter], ngrams: NgramModel) -> dict[str, Any]:
    """Bits per character of replies, given the turn before."""
    runs = [r for c in test if c.book not in NOT_VERNACULAR for r in dialogues(c)]
    pairs = [pair for run in runs for pair in itertools.pairwise(run)]
    chosen = np.random.default_rng(SEED).permutation(len(pairs))[:NUM_REPLIES]
    bits = 0.0
    baseline = dict.fromkeys(ORDERS, 0.0)
    characters = 0
    for index in chosen:
        turn, reply = pairs[index]
        score = model.score(turn, reply)
        bits -= score.logprob / NATS_PER_BIT
        before = ngrams.bits(f"\x00{turn} 道： ")
        after = ngrams.bits(f"\x00{turn} 道： {reply}")
        for order in ORDERS:
            baseline[order] += after[order] - before[order]
        characters += len(reply)
    return {
        "replies": len(chosen),
        "reply_characters": characters,
        "bits_per_reply_character": bits / characters,
        "ngram_bits_per_reply_character": {n: b / characters for n, b in baseline.items()},
        "fewer_bits": 1 - bits / min(baseline.values()),
    }


def samples(model: martlet.Model) -> list[tuple[str, str]]:
    """Ten prompts and what the model makes of each at the stated seed, none left out."""
    prompts = (CARDS / model.name / "prompts.txt").read_text(encoding="utf-8").splitlines()
    if model.name == "cpm1-mini":
        return [(text, model.write(text, max_tokens=80, seed=SEED)) for text in prompts]
    if model.name == "cpm2-mini":
        return [(text, model.fill(text, seed=SEED).text) for text in prompts]
    return [(t, model.chat([{"role": "user", "content": t}], seed=SEED)) for t in prompts]


MEASURES: dict[str, Measure] = {
    "cpm1-mini": writer_figures,
    "cpm2-mini": fill_figures,
    "eva-mini": turn_figures,
}


def main() -> None:
    """Measure, write the results and the cards."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--models", nargs="*", default=list(MEASURES))
    parser.add_argument("--training", type=Path, help="training outputs, for training.json")
    parser.add_argument("--cards-only", action="store_true", help="figures as measured before")
    args = parser.parse_args()
    parts = split(list(read_corpus(args.corpus)))
    ngrams = None if args.cards_only else NgramModel(join(parts["train"]), max(ORDERS))
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.models:
        model = martlet.load(name, device="cpu")
        row = rows.get(name, {})
        if ngrams is not None:
            row |= MEASURES[name](model, parts["test"], ngrams)
            commit = checkout_commit(Path(martlet.__file__).parent)
            row |= {"device": "cpu", "commit": commit, "command": " ".join(sys.argv)}
        if args.training:
            report = json.loads((args.training / name / "training.json").read_text())
            row["training"] = report | {"history": report["history"][-1:]}
        rows[name] = row
        RESULTS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        write_card(ZOO / name, row, samples(model), SEED)
        print(name, json.dumps({k: v for k, v in row.items() if k != "training"}), flush=True)


if __name__ == "__main__":
    main()
