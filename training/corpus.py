"""The corpus: reading, cleaning, the split by whole books, and the dialogues in it.

Input: ``classic-fiction.jsonl.xz``, one JSON object a line with ``book``, ``chapter``, ``text``.
The source has lost its quotation marks; direct speech is set off by spaces. Training text comes in
both forms, as found and with the marks restored, so that a model reads either and continues in
kind.
"""

from __future__ import annotations

import json
import lzma
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Whole books that no training step sees. TEST is what the model cards report; VALID is for
# decisions taken while training. 狄公案 and 常言道: Qing vernacular; 鬼神传: Qing, plainer;
# 剪灯新话: Ming, classical language.
TEST_BOOKS = ("狄公案", "鬼神传", "剪灯新话")
VALID_BOOKS = ("常言道",)

# Books in the classical language or in dialect: good prose, but not how the dialogue model should
# talk.
NOT_VERNACULAR = (
    *("太平广记", "聊斋志异", "阅微草堂笔记", "夷坚志", "新齐谐", "唐传奇", "世说新语", "搜神记"),
    *("笑林广记", "剪灯新话", "神仙传", "搜神后记", "西京杂记", "海上花列传", "东周列国志"),
)

_TAG = re.compile(r"<[^>]{0,20}>")
_SAID = re.compile(r"[说道曰问答叫喝嚷骂笑][:：]?$|[:：]$")
_SAME_SPEAKER = re.compile(r"[又再复](?:说|道|问|笑道|说道|问道|叫道)")
# What may lie between two turns: narration no longer than this many characters.
_TURN_GAP = 60
_MAX_TURN = 120


@dataclass(frozen=True)
class Chapter:
    """One chapter, cleaned, speech still set off by spaces."""

    book: str
    title: str
    text: str


def read_corpus(path: Path) -> Iterator[Chapter]:
    """All chapters of the corpus file (.jsonl or .jsonl.xz)."""
    opener = lzma.open if path.suffix == ".xz" else open
    with opener(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield Chapter(row["book"], row["chapter"], clean(row["text"]))


def clean(text: str) -> str:
    """Drop markup, take the full-width full stop of one edition for a full stop."""
    text = _TAG.sub("", text).replace("．", "。").replace("\r", "").replace("\u3000", " ")
    text = re.sub(r"[ \t]+", " ", text)
    return re.sub(r"\n\s*\n+", "\n", text).strip()


def part_of(book: str) -> str:
    """The part a book belongs to: train, valid or test."""
    if book in TEST_BOOKS:
        return "test"
    return "valid" if book in VALID_BOOKS else "train"


def split(chapters: list[Chapter]) -> dict[str, list[Chapter]]:
    """Chapters by part: train, valid, test; a book is never in two."""
    parts: dict[str, list[Chapter]] = {"train": [], "valid": [], "test": []}
    for chapter in chapters:
        parts[part_of(chapter.book)].append(chapter)
    return parts


def restore_quotes(text: str) -> str:
    """Turn the spaces around speech into “ ”, paragraph by paragraph, where they pair up."""
    return "\n".join(_restore_line(line) for line in text.split("\n"))


def _restore_line(line: str) -> str:
    parts = _narration_and_speech(line)
    if not parts:
        return line
    return "".join(part if i % 2 == 0 else f"“{part}”" for i, part in enumerate(parts))


def _narration_and_speech(line: str) -> list[str]:
    """Narration, speech, narration ... of a paragraph; nothing where its spaces do not pair up."""
    parts = line.split(" ")
    return parts if len(parts) % 2 else []


def dialogues(chapter: Chapter) -> Iterator[list[str]]:
    """Runs of turns: speech after speech with little narration between."""
    turns: list[str] = []
    is_cut = True
    for narration, gap, speech in _speeches(chapter.text):
        if not _SAID.search(narration) or not 1 < len(speech) <= _MAX_TURN:
            is_cut = True
            continue
        if is_cut or gap > _TURN_GAP:
            if len(turns) > 1:
                yield turns
            turns = []
        is_cut = False
        if turns and _SAME_SPEAKER.search(narration):
            turns[-1] = (turns[-1] + speech)[:_MAX_TURN]
        else:
            turns.append(speech)
    if len(turns) > 1:
        yield turns


def _speeches(text: str) -> Iterator[tuple[str, int, str]]:
    """Every speech with the narration just before it and the characters since the last speech."""
    gap = 0
    for line in text.split("\n"):
        parts = _narration_and_speech(line)
        for narration, speech in zip(parts[::2], parts[1::2], strict=False):
            yield narration, gap + len(narration), speech
            gap = 0
        gap += (len(parts[-1]) if parts else 0) + 1
