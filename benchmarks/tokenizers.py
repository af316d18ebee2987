"""Speed of the tokenizers: MB of UTF-8 text per second of processor time, as JSON.

    python benchmarks/tokenizers.py [TEXT_FILE] [--seconds 3] [--model NAME=KIND:FOLDER ...]

Without a file, a built-in paragraph is repeated to about 2 MB. The bundled vocabularies are
measured; --model adds others, such as a Hugging Face folder. Processor time, not
the clock: everything measured runs in one thread, and other programs then matter less.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from martlet.tokenizers.detokenizer import Detokenizer
from martlet.tokenizers.load import load_tokenizer
from martlet.tokenizers.segmenter import default_segmenter
from martlet.tokenizers.tokenizer import Tokenizer

ZOO = Path(__file__).resolve().parents[1] / "src" / "martlet" / "zoo"
BUNDLED = {
    "cpm1": ("cpm1", ZOO / "cpm1-mini"),
    "cpm2": ("cpm2", ZOO / "cpm2-mini"),
    "eva": ("eva", ZOO / "eva-mini"),
}
TOKENIZER_FILES = ("chinese_vocab.model", "vocab.txt", "tokenizer.json", "spiece.model")
PARAGRAPH = (
    "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦；及秦灭之后，楚、汉分争，又并入于汉。"
    "Martlet 是纹章里的燕子，价格为418元。“旧时王谢堂前燕，飞入寻常百姓家。”\n"
)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("text", nargs="?", type=Path, help="UTF-8 text file")
    parser.add_argument("--seconds", type=float, default=3.0, help="least time for one figure")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=KIND:FOLDER")
    options = parser.parse_args(arguments)
    text = options.text.read_text(encoding="utf-8") if options.text else PARAGRAPH * 8000
    models = dict(BUNDLED)
    for model in options.model:
        name, _, place = model.partition("=")
        kind, _, folder = place.partition(":")
        models[name] = (kind, Path(folder))
    command = shlex.join(["python", "benchmarks/tokenizers.py", *arguments])
    rows = [_row("jieba", "segment", text, default_segmenter().cut, options.seconds)]
    for name, (kind, folder) in models.items():
        tokenizer = load_tokenizer(kind, folder, _present(folder))
        rows += _measure(name, tokenizer, text, options.seconds)
    print(json.dumps([row | {"command": command} for row in rows], indent=2))


def _measure(name: str, tokenizer: Tokenizer, text: str, seconds: float) -> list[dict]:
    token_ids = tokenizer.encode(text)
    # All speeds are in bytes of the same text, also where decoding gives fewer.
    rows = [
        _row(name, "encode", text, tokenizer.encode, seconds),
        _row(name, "decode", text, lambda _: tokenizer.decode(token_ids), seconds),
        _row(name, "stream", text, lambda _: _stream(tokenizer, token_ids), seconds),
    ]
    return [row | {"num_tokens": len(token_ids)} for row in rows]


def _stream(tokenizer: Tokenizer, token_ids: Sequence[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    for token_id in token_ids:
        detokenizer.push(token_id)
    detokenizer.flush()


def _row(name: str, task: str, text: str, work: Callable[[str], object], seconds: float) -> dict:
    num_bytes = len(text.encode())
    work(text[:1000])  # dictionaries are loaded at the first call
    best_seconds, start = float("inf"), time.process_time()
    while time.process_time() - start < seconds:
        before = time.process_time()
        work(text)
        best_seconds = min(best_seconds, time.process_time() - before)
    return {
        "tokenizer": name,
        "task": task,
        "mb_per_second": round(num_bytes / 1e6 / best_seconds, 3),
        "text_bytes": num_bytes,
        "device": "cpu",
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }


def _present(folder: Path) -> list[str]:
    return [name for name in TOKENIZER_FILES if (folder / name).is_file()]


if __name__ == "__main__":
    main(sys.argv[1:])
