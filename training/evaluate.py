"""Held-out figures and uncurated samples of the bundled models, and the model cards made of them.

    python training/evaluate.py CORPUS.jsonl.xz [--models cpm1-mini ...] [--training OUTPUT_FOLDER]

Everything is measured through the public package on the int8 models as they ship, on the books in
``corpus.TEST_BOOKS``, next to character n-grams counted on the same training text. Writes
benchmarks/results/zoo-quality.json and README.md into each model's folder.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from batches import CPM2_SENTINEL, Stream, fill_example
from card import write_card
from corpus import NOT_VERNACULAR, Chapter, dialogues, read_corpus, restore_quotes, split
from ngram import NgramModel, join
from prepare import ZOO, sentence_starts, tokenizer_of

import martlet
from martlet.engine.request import Context

RESULTS = Path(__file__).parents[1] / "benchmarks/results/zoo-quality.json"
SEED = 1
NUM_PASSAGES = 300
NUM_REPLIES = 500
ORDERS = (3, 4, 5)
NATS_PER_BIT = math.log(2)

OPENINGS = (
    *("却说那老汉推开门，只见", "次日清晨，天降大雪，", "宝玉笑道：", "话说唐朝年间，", "那道人把手一指，"),
    *("小姐听了，满面通红，", "众人正在饮酒，忽听得", "知县升堂，喝道：", "行至山中，", "三更时分，"),
)
PASSAGES = (
    *("次日清晨，__，众人都到堂前__。", "那大王听了，__，便__。", "却说宋江见了，心中__，便道：“__？”"),
    *("小姐__，不觉流下泪来，说道：“__。”", "行了半日，只见前面一座__，十分__。", "老爷坐在__上，喝道：“__！”"),
    *("他从袖中取出一__来，递与__。", "那汉__一声，提起__便打。", "是夜月明如昼，__独自在园中__。", "和尚合掌道：“__，贫僧__。”"),
)
TURNS = (
    *("你这汉子是谁？", "老爷，外面有人求见。", "今日天气甚好，我们出去走走如何？", "你叫什么名字？", "你要往哪里去？"),
    *("那强盗如今在何处？", "小姐为何啼哭？", "这酒多少钱一壶？", "师父，弟子有一事不明。", "大哥，我们如何是好？"),
)

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
    marks = clause_ends(model)
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


def clause_ends(model: martlet.Model) -> np.ndarray:
    """Which tokens end a clause."""
    ends = np.zeros(1 << 16, dtype=bool)
    for mark in "，。？！；：、”“":
        ends[model.tokenizer.encode(mark)] = True
    ends[model.tokenizer.special.unk] = False
    return ends


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
    pairs = [pair for run in runs for pair in zip(run[:-1], run[1:], strict=True)]
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
    if model.name == "cpm1-mini":
        return [(text, model.write(text, max_tokens=80, seed=SEED)) for text in OPENINGS]
    if model.name == "cpm2-mini":
        return [(text, model.fill(text, seed=SEED).text) for text in PASSAGES]
    return [(t, model.chat([{"role": "user", "content": t}], seed=SEED)) for t in TURNS]


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
    args = parser.parse_args()
    parts = split(list(read_corpus(args.corpus)))
    ngrams = NgramModel(join(parts["train"]), max(ORDERS))
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for name in args.models:
        model = martlet.load(name, device="cpu")
        row = rows.get(name, {}) | MEASURES[name](model, parts["test"], ngrams)
        if args.training:
            row["training"] = json.loads((args.training / name / "training.json").read_text())
        rows[name] = row
        RESULTS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        write_card(ZOO / name, row, samples(model), SEED)
        print(name, json.dumps({k: v for k, v in row.items() if k != "training"}), flush=True)


if __name__ == "__main__":
    main()
