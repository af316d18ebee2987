"""The model card that ships beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TITLES = {
    "cpm1-mini": ("a story writer", "续写", "CPM-1 (GPT-2 form, learned positions, tied head)"),
    "cpm2-mini": ("fills blanks and writes on", "填空", "CPM-2 (T5 form, relative positions, no attention scale)"),
    "eva-mini": ("answers a turn with a turn", "对话", "EVA 1.0 (T5 form, relative positions, no attention scale)"),
}
COMMANDS = {
    "cpm1-mini": 'martlet write cpm1-mini "却说那老汉推开门，只见"',
    "cpm2-mini": 'martlet fill cpm2-mini "次日清晨，__，众人都到堂前__。"',
    "eva-mini": "martlet chat eva-mini",
}
DATA = """Trained from nothing on 42 of 46 works of Chinese fiction from the Tang to the early Republic (public
domain; 17.7 M characters; text from the folder 古文原文 of the public repository
NiuTrans/Classical-Modern, MIT, commit 4e746ea9). Whole books are held out: 狄公案, 鬼神传 and 剪灯新话
for the figures below, 常言道 for decisions while training. Half of the text was read with its
quotation marks restored."""
LIMITS = """A small model with old books in its head: it knows no fact worth trusting, speaks the language of its
sources, repeats their views, and loses the thread within a page. It is here to show that the
machinery works, not to advise anybody."""


def _figures(name: str, row: dict[str, Any]) -> list[str]:
    suffix = {"cpm1-mini": "character", "cpm2-mini": "hidden_character", "eva-mini": "reply_character"}
    what = {
        "cpm1-mini": f"bits per character, {row.get('test_characters', 0):,} characters of the test books",
        "cpm2-mini": f"bits per hidden character, {row.get('passages', 0)} passages, {row.get('blanks', 0):,} blanks",
        "eva-mini": f"bits per character of {row.get('replies', 0)} replies, one turn of context",
    }[name]
    bits = f"bits_per_{suffix[name]}"
    grams = row[f"ngram_{bits}"]
    lines = [f"| {what} | {row[bits]:.3f} |"]
    for order, value in grams.items():
        lines.append(f"| character {order}-grams, modified Kneser-Ney, interpolated, same split | {value:.3f} |")
    lines.append(f"| fewer bits than the best of them | {row['fewer_bits']:.1%} |")
    if "exactly_as_the_author" in row:
        lines.append(f"| blanks whose likeliest answer is the author's own | {row['exactly_as_the_author']:.1%} |")
    return lines


def _training(row: dict[str, Any]) -> str:
    training = row.get("training")
    if not training:
        return ""
    last = training["history"][-1]
    return (
        f"{training['parameters']:,} parameters, {training['steps']:,} steps of {training['batch']} examples, "
        f"{last['seconds']:.0f} s on one {training['device']}, int8 afterwards (one scale a row)."
    )


def write_card(folder: Path, row: dict[str, Any], samples: list[tuple[str, str]], seed: int) -> None:
    """README.md of a bundled model."""
    name = folder.name
    english, chinese, family = TITLES[name]
    size = sum(f.stat().st_size for f in folder.iterdir() if f.name != "README.md")
    lines = [
        f"# {name}: {english} · {chinese}",
        "",
        f"The architecture of {family} and its real vocabulary at a size that ships in the package",
        f"({size / 1e6:.1f} MB). Licence: Apache-2.0; the vocabulary is MIT (see NOTICE).",
        "",
        f"```bash\n{COMMANDS[name]}\n```",
        "",
        "## Data",
        "",
        DATA,
        "",
        _training(row),
        "",
        "## Held-out figures (int8, as shipped, on the CPU)",
        "",
        "| what | figure |",
        "|---|---|",
        *_figures(name, row),
        "",
        f"## Ten samples, uncurated (seed {seed}, the model's own sampling defaults)",
        "",
    ]
    for prompt, answer in samples:
        shown = answer.strip().replace("\n", " ⏎ ")
        lines.append(f"- {prompt} → {shown}")
    lines += ["", "## Limits", "", LIMITS, ""]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
