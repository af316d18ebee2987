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
import memory_plot

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN = "<!-- measurements: begin (filled from benchmarks/results) -->"
END = "<!-- measurements: end -->"
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
    return "\n".join(parts)


def render_benchmarks(page: str, words: dict[str, str]) -> str:
    """What stands between the marks of a benchmark page; nothing is claimed without rows."""
    folder = "../" * (page.count("/") - 1)
    return benchmark_page.render(_benchmark_rows(), words, folder)


def _benchmark_rows() -> list[dict[str, Any]]:
    return _load("h200") if (RESULTS / "h200.json").exists() else []


def main() -> None:
    """Fill the pages, or with --check compare them."""
    texts = {name: render(words) for name, words in WORDS.items()}
    texts |= {name: render_benchmarks(name, words) for name, words in BENCHMARK_WORDS.items()}
    for name, text in texts.items():
        page = ROOT / name
        old = page.read_text(encoding="utf-8")
        before, after = old.split(BEGIN)[0], old.split(END)[1]
        new = f"{before}{BEGIN}\n{text}\n{END}{after}"
        if sys.argv[1:] != ["--check"]:
            page.write_text(new, encoding="utf-8")
        elif new != old:
            sys.exit(f"{name} does not show what benchmarks/results says; run `make docs`")
    plotted = benchmark_page.plotted(_benchmark_rows())
    if sys.argv[1:] != ["--check"] and len(plotted) > 1:
        memory_plot.draw(plotted, ROOT / "docs" / benchmark_page.PLOT)


if __name__ == "__main__":
    main()
