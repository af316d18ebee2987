"""Tokenise the corpus for the three models, once, on all cores.

    python training/prepare.py CORPUS.jsonl.xz OUTPUT_FOLDER

Writes ``MODEL-PART-FORM.npz`` with ``ids`` (uint16, chapters one after another, each closed by
<eod>) and ``starts`` (where sentences begin), once as found and once with quotation marks restored,
and for the dialogue model ``turns`` and their borders.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from multiprocessing.pool import Pool
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from corpus import NOT_VERNACULAR, Chapter, dialogues, read_corpus, restore_quotes, split
from martlet.tokenizers.cpm import CPM1Tokenizer, CPM2Tokenizer
from martlet.tokenizers.eva import EVATokenizer
from martlet.tokenizers.tokenizer import Tokenizer

Ids = NDArray[np.uint16]

ZOO = Path(__file__).parents[1] / "src/martlet/zoo"
TOKENIZERS = {
    "cpm1-mini": (CPM1Tokenizer, "chinese_vocab.model"),
    "cpm2-mini": (CPM2Tokenizer, "vocab.txt"),
    "eva-mini": (EVATokenizer, "vocab.txt"),
}
EVA_EOD = 7  # <eod>, the end of a text; this family's eos is <sep>, the end of a turn
SENTENCE_END = '。？！”\n?!"'
_tokenizer: dict[str, Tokenizer] = {}


def tokenizer_of(model: str) -> Tokenizer:
    """The tokenizer of a bundled model, loaded once a process."""
    if model not in _tokenizer:
        tokenizer, file = TOKENIZERS[model]
        _tokenizer[model] = tokenizer(ZOO / model / file)
    return _tokenizer[model]


def _encode(job: tuple[str, str]) -> Ids:
    model, text = job
    tokenizer = tokenizer_of(model)
    lines = text.split("\n")
    newline = tokenizer.encode("a\nb")[1:-1]  # jieba never joins across a line, so lines go alone
    ids: list[int] = []
    for i, line in enumerate(lines):
        ids += (newline if i else []) + tokenizer.encode(line)
    return np.array(ids, dtype=np.uint16)


def sentence_starts(ids: Ids, model: str) -> NDArray[np.int64]:
    """Positions where a token follows one that ends a sentence."""
    tokenizer = tokenizer_of(model)
    ends = np.zeros(1 << 16, dtype=bool)
    for token in np.unique(ids):
        text = tokenizer.decode([int(token)])
        ends[token] = bool(text) and text[-1] in SENTENCE_END
    is_end = ends[ids]
    starts = np.flatnonzero(is_end[:-1] & ~is_end[1:]) + 1
    return np.concatenate([[0], starts]).astype(np.int64)


def write_text(file: Path, model: str, texts: Sequence[str], pool: Pool) -> None:
    """One stream: all texts, each closed."""
    eod = EVA_EOD if model == "eva-mini" else tokenizer_of(model).special.eos
    closing = np.array([eod], dtype=np.uint16)
    encoded = pool.map(_encode, [(model, text) for text in texts], chunksize=4)
    ids = np.concatenate([piece for e in encoded for piece in (e, closing)])
    np.savez(file, ids=ids, starts=sentence_starts(ids, model))
    print(file.stem, f"{len(ids):,} tokens, {sum(map(len, texts)):,} characters", flush=True)


def write_dialogues(file: Path, chapters: Sequence[Chapter], pool: Pool) -> None:
    """``turns`` end to end, where each ends, and after how many turns each dialogue ends."""
    runs = [run for c in chapters if c.book not in NOT_VERNACULAR for run in dialogues(c)]
    encoded = pool.map(_encode, [("eva-mini", turn) for run in runs for turn in run], chunksize=64)
    np.savez(
        file,
        turns=np.concatenate(encoded),
        turn_ends=np.cumsum([len(e) for e in encoded]),
        run_ends=np.cumsum([len(run) for run in runs]),
        characters=sum(len(turn) for run in runs for turn in run),
    )
    print(file.stem, f"{len(runs):,} dialogues, {len(encoded):,} turns", flush=True)


def _forms(chapters: Sequence[Chapter]) -> Iterator[tuple[str, list[str]]]:
    yield "found", [chapter.text for chapter in chapters]
    yield "quoted", [restore_quotes(chapter.text) for chapter in chapters]


def main() -> None:
    """Write every part of every model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--models", nargs="*", choices=TOKENIZERS, default=list(TOKENIZERS))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    parts = split(list(read_corpus(args.corpus)))
    with Pool() as pool:
        for model in args.models:
            for part, chapters in parts.items():
                for form, texts in _forms(chapters):
                    write_text(args.output / f"{model}-{part}-{form}.npz", model, texts, pool)
                if model == "eva-mini":
                    file = args.output / f"eva-mini-{part}-dialogues.npz"
                    write_dialogues(file, chapters, pool)


if __name__ == "__main__":
    main()
