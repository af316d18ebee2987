"""What formats and methods of compression cost: float, int8 and int4 models on the same texts.

    python benchmarks/compression.py CORPUS FLOAT_FOLDER [FLOAT_FOLDER ...] [--methods nearest,gptq]

Writes benchmarks/results/compression-minis.json, one row for each model, format, method and text;
rows that are there are kept, so that a run can be interrupted, or add to what another machine made.
The texts are the books that no training has seen (``training/corpus.py``), and a modern story
(texts/kong-yiji.txt: Lu Xun, 1919), which is like nothing in the corpus. Calibration and training
read other books. Compressed folders are made below --work, and taken from there where they are.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import martlet
from compression_methods import METHODS, Recipe, compressed_folder, planned_recipes
from martlet.api.comparing import FormatScore, Variant, compare_formats
from martlet.bench.record import checkout_commit
from martlet.cli.progress import Meter

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/compression-minis.json"
STORY = ROOT / "benchmarks/texts/kong-yiji.txt"

sys.path.insert(0, str(ROOT / "training"))
from corpus import TEST_BOOKS, Chapter, read_corpus, split  # noqa: E402

# Of what is loaded now; the checkout may change while this runs.
COMMIT = checkout_commit(Path(martlet.__file__).parent)

Row = dict[str, Any]
KEY = ("model", "format", "method", "text", "characters", "device_kind")


@dataclass(frozen=True)
class Text:
    """What is predicted; ``name`` is how rows call it."""

    name: str
    text: str


def main() -> None:
    """Make the rows that are missing."""
    args = _arguments()
    chapters = split(list(read_corpus(args.corpus)))
    texts = [
        Text("held-out books", _opening(chapters["test"], args.characters)),
        Text("modern story", STORY.read_text(encoding="utf-8")),
    ]
    args.work.mkdir(parents=True, exist_ok=True)
    data = args.work / "training-books.txt"
    data.write_text(_opening(chapters["train"], args.training_characters), encoding="utf-8")
    for folder in args.folders:
        for text in texts:
            _measure(folder, text, data, args)


def _measure(folder: Path, text: Text, data: Path, args: argparse.Namespace) -> None:
    """The rows of one model and one text that are missing."""
    rows = _read(args.output)
    there = {tuple(row[name] for name in KEY) for row in rows}
    missing = []
    for recipe in planned_recipes(args.methods, args.formats):
        row = {**_named(folder, recipe, text), "device_kind": args.device}
        if tuple(row[name] for name in KEY) not in there:
            missing.append((recipe, row))
    if not missing:
        return
    made = [recipe for recipe, _ in missing if recipe.format != "float"]
    variants = [Variant(folder), *(_variant(folder, recipe, data, args) for recipe in made)]
    by_name = {(row["format"], row["method"]): row for _, row in missing}
    with Meter(f"{folder.name}, {text.name}") as meter:
        scores = compare_formats(variants, text.text, {"device": args.device}, meter.update)
        for recipe, score in zip([Recipe("float", None), *made], scores, strict=True):
            row = by_name.get((recipe.format, recipe.method))
            if row is not None:  # the float model is always scored, for the others to compare with
                rows.append({**row, **_figures(score, args.device)})
                _write(args.output, rows)
                print(json.dumps(rows[-1], ensure_ascii=False), flush=True)


def _variant(folder: Path, recipe: Recipe, data: Path, args: argparse.Namespace) -> Variant:
    if recipe.is_made_while_loading:
        return Variant(folder, recipe.format)
    return Variant(compressed_folder(folder, recipe, data, args))


def _named(folder: Path, recipe: Recipe, text: Text) -> Row:
    return {
        "model": folder.name,
        "format": recipe.format,
        "method": recipe.method,
        "group_size": recipe.group_size,
        "text": text.name,
        "characters": len(text.text),
    }


def _figures(result: FormatScore, device: str) -> Row:
    score, divergence = result.score, result.divergence
    assert divergence is not None, "a model and its compressed forms share a vocabulary"
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    return {
        "bits_per_weight": result.bits_per_weight,
        "tokens": score.num_tokens,
        "bits_per_character": score.bits_per_character,
        "perplexity": score.perplexity,
        "perplexity_change": result.perplexity_change,
        "kl": divergence.kl,
        "top1_agreement": divergence.top1_agreement,
        "compared_tokens": divergence.num_tokens,
        "device": name,
        "torch": torch.__version__,
        "commit": COMMIT,
        "command": shlex.join(["python", *(_public(argument) for argument in sys.argv)]),
    }


def _public(argument: str) -> str:
    """Paths outside of the checkout by their last name: the others are nobody's business."""
    path = Path(argument)
    return path.name if path.is_absolute() else argument


def _opening(chapters: Sequence[Chapter], num_characters: int) -> str:
    """As much of the beginning of each book, together ``num_characters`` or all there is."""
    books = list(dict.fromkeys(chapter.book for chapter in chapters))
    share = num_characters // len(books)
    return "\n".join(text[:share] for text in _books(chapters, books))


def _books(chapters: Sequence[Chapter], books: Sequence[str]) -> Iterator[str]:
    for book in books:
        yield "\n".join(chapter.text for chapter in chapters if chapter.book == book)


def _read(path: Path) -> list[Row]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def _write(path: Path, rows: Sequence[Row]) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path, help="the corpus of training/, with its test books")
    parser.add_argument("folders", type=Path, nargs="+", help="model folders with float weights")
    parser.add_argument("--methods", default=",".join(METHODS), help="which rows to make")
    parser.add_argument(
        "--formats",
        help="which formats of int4, as int4-g64 or int4-g64:head=int8:embedding=int8; "
        "groups of 32 and 128, with and without zeros, by default",
    )
    parser.add_argument("--characters", type=int, default=60_000, help=f"of {TEST_BOOKS} together")
    parser.add_argument(
        "--training-characters", type=int, default=2_000_000, help="to calibrate and train on"
    )
    parser.add_argument(
        "--quantize-options", default="", help='for martlet quantize: "--samples 64"'
    )
    parser.add_argument("--adapt-options", default="", help='for martlet adapt: "--iterations 9"')
    parser.add_argument("--work", type=Path, default=Path("compressed"))
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    args.methods = args.methods.split(",")
    args.formats = args.formats.split(",") if args.formats else None
    if unknown := set(args.methods) - set(METHODS):
        parser.error(
            f"unknown methods {', '.join(sorted(unknown))}; there are {', '.join(METHODS)}"
        )
    return args


if __name__ == "__main__":
    main()
