"""The model card that ships beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

T5_FORM = "T5 form, relative positions, no attention scale"
TITLES = {
    "cpm1-mini": ("a story writer", "续写", "CPM-1 (GPT-2 form, learned positions, tied head)"),
    "cpm2-mini": ("fills blanks and writes on", "填空", f"CPM-2 ({T5_FORM})"),
    "eva-mini": ("answers a turn with a turn", "对话", f"EVA 1.0 ({T5_FORM})"),
}
COMMANDS = {
    "cpm1-mini": 'martlet write cpm1-mini "却说那老汉推开门，只见"',
    "cpm2-mini": 'martlet fill cpm2-mini "次日清晨，__，众人都到堂前__。"',
    "eva-mini": "martlet chat eva-mini",
}
DATA = """\
Trained from nothing on 42 of 46 works of Chinese fiction from the Tang to the early Republic
(public domain; 17.7 M characters; text from the folder 古文原文 of the public repository
NiuTrans/Classical-Modern, MIT, commit 4e746ea9). Whole books are held out: 狄公案, 鬼神传 and
剪灯新话 for the figures below, 常言道 for decisions while training. Half of the text was read with
its quotation marks restored."""
LIMITS = """\
A small model with old books in its head: it knows no fact worth trusting, speaks the language of
its sources, repeats their views, and loses the thread within a page. It is here to show that the
machinery works, not to advise anybody."""
MEASURED = {
    "cpm1-mini": ("character", "{test_characters:,} characters of the test books"),
    "cpm2-mini": ("hidden_character", "{passages} passages with {blanks:,} blanks"),
    "eva-mini": ("reply_character", "{replies} replies, one turn of context"),
}


def _figures(name: str, row: dict[str, Any]) -> list[str]:
    unit, what = MEASURED[name]
    bits = f"bits_per_{unit}"
    lines = [f"| bits per {unit.replace('_', ' ')}: {what.format(**row)} | {row[bits]:.3f} |"]
    for order, value in row[f"ngram_{bits}"].items():
        lines.append(f"| the same by interpolated Kneser-Ney {order}-grams | {value:.3f} |")
    lines.append(f"| fewer bits than the best of them | {row['fewer_bits']:.1%} |")
    if "exactly_as_the_author" in row:
        share = row["exactly_as_the_author"]
        lines.append(f"| blanks whose likeliest answer is the author's own | {share:.1%} |")
    return lines


def _training(row: dict[str, Any]) -> str:
    training = row.get("training")
    if not training:
        return ""
    seconds = training["history"][-1]["seconds"]
    taught = " It learned from the text and from a larger writer (78.6 M parameters, 250 s)."
    return (
        f"{training['parameters']:,} parameters, {training['steps']:,} steps of "
        f"{training['batch']} examples, {seconds:.0f} s on one {training['device']}; "
        "int8 afterwards, one scale a row." + taught * (training["model"] == "cpm1-mini")
    )


def write_card(
    folder: Path, row: dict[str, Any], samples: list[tuple[str, str]], seed: int
) -> None:
    """README.md of a bundled model."""
    name = folder.name
    english, chinese, family = TITLES[name]
    size = sum(f.stat().st_size for f in folder.iterdir() if f.name != "README.md")
    lines = [
        f"# {name}: {english} · {chinese}",
        "",
        f"The architecture of {family} and its real vocabulary,",
        f"at a size that ships in the package ({size / 1e6:.1f} MB). Licence: Apache-2.0;",
        "the vocabulary is MIT (see NOTICE).",
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
