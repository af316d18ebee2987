"""Fill the measured figures of the pages from benchmarks/results; `make docs` runs this.

`--check` changes nothing and fails when a page does not show what the files say. The plot is not
compared: other versions of what draws it write other files.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import benchmark_page
import compression_plot
import compression_tables
import kv_cache_tables
import memory_plot
import oracle_tables
import prompt_tables
import serving_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# What stands between these lines is ours; the names are those of _texts().
BEGIN = "<!-- {name}: begin (filled from benchmarks/results) -->"
END = "<!-- {name}: end -->"
UNITS = {
    "cpm1-mini": "bits_per_character",
    "cpm2-mini": "bits_per_hidden_character",
    "eva-mini": "bits_per_reply_character",
}
# The words around the figures, by page.
WORDS: dict[str, dict[str, str]] = json.loads(
    (ROOT / "docs/measurements.json").read_text(encoding="utf-8")
)
BENCHMARK_WORDS: dict[str, dict[str, str]] = json.loads(
    (ROOT / "docs/benchmarks.json").read_text(encoding="utf-8")
)
COMPRESSION_WORDS: dict[str, dict[str, str]] = json.loads(
    (ROOT / "docs/compression.json").read_text(encoding="utf-8")
)
MODEL_WORDS: dict[str, dict[str, str]] = json.loads(
    (ROOT / "docs/models.json").read_text(encoding="utf-8")
)


def _load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def _table(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def render(words: dict[str, str]) -> str:
    """What stands between the marks of one README."""
    quality = _load("zoo-quality")
    speed = {row["shape"]: row for row in _load("minis")}
    rows = []
    for name, unit in UNITS.items():
        figures, run = quality[name], speed[name]
        rows.append(
            [
                f"`{name}`",
                f"{figures[unit]:.2f}",
                f"{min(figures[f'ngram_{unit}'].values()):.2f}",
                f"{figures['fewer_bits']:.1%}",
                f"{run['decode_tokens_per_second']:.0f}",
                f"{run['prefill_tokens_per_second']:,.0f}",
                f"{1000 * run['time_to_first_token_seconds']:.0f}",
            ]
        )
    run = speed["cpm1-mini"]
    heads = [words[k] for k in ("model", "bits", "ngram", "fewer", "decode", "prefill", "first")]
    models = words["models"].format(device=run["device"], commit=run["commit"])
    parts = [models, "", *_table(heads, rows), "", words["note"], ""]
    rows = [
        [
            f"`{row['model']}`",
            f"{row['perplexity_float']:.2f} → {row['perplexity']:.2f} "
            f"({row['perplexity_change']:+.2%})",
            f"{row['kl']:.4f}",
            f"{row['top1_agreement']:.1%}",
            f"{row['relative_logit_error']:.1%}",
        ]
        for row in _load("compression-int8")
    ]
    heads = [words[k] for k in ("model", "perplexity", "kl", "top1", "logits")]
    parts += [words["int8"], "", *_table(heads, rows), ""]
    (made,) = _load("convert-cpm1")
    parts += [
        words["convert"].format(
            source=made["source_bytes"] / 1e9,
            seconds=made["seconds"],
            anonymous=made["peak_rss_anonymous_bytes"] / 1e6,
            commit=made["commit"],
        ),
        "",
        words["startup"].format(median=_load("startup")[0]["median_seconds"]),
    ]
    for line in (
        benchmark_page.headline(_rows("h200"), words),
        serving_tables.headline(_rows("serving"), words),
    ):
        parts += ["", line] if line else []
    return "\n".join(parts)


def render_benchmarks(page: str, words: dict[str, str]) -> str:
    """What stands between the marks of a benchmark page; nothing is claimed without rows."""
    folder = "../" * (page.count("/") - 1)
    return benchmark_page.render(_rows("h200"), words, folder)


def render_serving(words: dict[str, str]) -> str:
    """What a benchmark page shows of many texts at a time."""
    return serving_tables.render(_rows("serving"), words) or words["none"]


def render_prompts(words: dict[str, str]) -> str:
    """Prompts of a benchmark page, beside a peer's."""
    return prompt_tables.render_prompts(_rows("h200-prefill"), words) or words["none"]


def render_loads(words: dict[str, str]) -> str:
    """What loading takes, on a benchmark page."""
    return prompt_tables.render_loads(_rows("load"), words) or words["none"]


def render_compression(page: str, words: dict[str, str]) -> str:
    """What formats and methods of compression cost."""
    folder = "../" * (page.count("/") - 1)
    rows = _rows("compression-minis")
    return compression_tables.render(rows, words, folder) or words["none"]


def render_kv_cache(words: dict[str, str]) -> str:
    """What an int8 cache of keys and values costs."""
    return kv_cache_tables.render(_rows("kv-cache"), words) or words["none"]


def render_oracle(words: dict[str, str]) -> str:
    """How far logits of all families are from those of transformers."""
    return oracle_tables.render(_rows("oracle"), words) or words["none"]


def _rows(name: str) -> list[dict[str, Any]]:
    """Rows that may not have been measured yet."""
    return _load(name) if (RESULTS / f"{name}.json").exists() else []


def _texts() -> list[tuple[str, str, str]]:
    """(page, name of the part, text) of all that is filled."""
    texts = [(page, "measurements", render(words)) for page, words in WORDS.items()]
    for page, words in BENCHMARK_WORDS.items():
        texts.append((page, "measurements", render_benchmarks(page, words)))
        texts.append((page, "prompts", render_prompts(words)))
        texts.append((page, "loads", render_loads(words)))
        texts.append((page, "serving", render_serving(words)))
    for page, words in COMPRESSION_WORDS.items():
        texts.append((page, "measurements", render_compression(page, words)))
        texts.append((page, "kv-cache", render_kv_cache(words)))
    for page, words in MODEL_WORDS.items():
        texts.append((page, "oracle", render_oracle(words)))
    return texts


def fill(page: str, name: str, text: str) -> str:
    """A page with another text in one of its parts."""
    begin, end = BEGIN.format(name=name), END.format(name=name)
    before, rest = page.split(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.split(end)[1]}"


def main() -> None:
    """Fill the pages, or with --check compare them."""
    for name, part, text in _texts():
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        new = fill(old, part, text)
        if sys.argv[1:] != ["--check"]:
            page.write_text(new, encoding="utf-8")
        elif new != old:
            sys.exit(f"{name} does not show what benchmarks/results says; run `make docs`")
    plotted = benchmark_page.plotted(_rows("h200"))
    if sys.argv[1:] != ["--check"] and len(plotted) > 1:
        memory_plot.draw(plotted, ROOT / "docs" / benchmark_page.PLOT)
    compressed = compression_tables.longest(_rows("compression-minis"))
    if sys.argv[1:] != ["--check"] and compressed:
        compression_plot.draw(compressed, ROOT / "docs" / compression_tables.PLOT)


if __name__ == "__main__":
    main()
