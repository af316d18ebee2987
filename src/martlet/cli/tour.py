"""martlet tour: the three bundled models at work."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from martlet.cli.answer import load_model, report_answer
from martlet.cli.options import LoadOptions, load_options
from martlet.cli.output import print_text, shown

if TYPE_CHECKING:
    from martlet.api import Model

__all__ = ["Column", "command"]

_SEED = 4
_WIDTH = 76
_INDENT = "  "
_FILL = ("cpm2-mini", ("次日清晨，__，众人都到堂前__。", "却说宋江见了，心中__，便道：“__？”"))
_WRITE = ("cpm1-mini", "众人正在饮酒，忽听得")
_CHAT = ("eva-mini", ("你这汉子是谁？", "你要往哪里去？"))


@click.command("tour")
@load_options
def command(loading: LoadOptions) -> None:
    """See the three bundled models fill blanks, write and chat; about a minute."""
    # All three are loaded first: what is missing is said before anything is shown.
    filler, writer, talker = (load_model(name, loading) for name, _ in (_FILL, _WRITE, _CHAT))
    _say("Martlet · 飞入寻常百姓家", bold=True)
    _say("Three small models that have read classical Chinese novels, on this machine.")
    _say("三个读过古典小说的小模型，就在这台机器上运行。")
    _show_fill(filler)
    _show_write(writer)
    _show_chat(talker)
    _say("\nNow you · 轮到你了", bold=True)
    program = _program()
    for line in (
        f'fill {_FILL[0]} "那大王听了，__，便__。"',
        f'write {_WRITE[0]} "话说那日天降大雪，"',
        f"chat {_CHAT[0]}",
        "--help",
    ):
        print_text(f"{_INDENT}{program} {line}")
    _say("\nIn the browser · 在浏览器里", bold=True)
    print_text(f"{_INDENT}{program} serve")


def _show_fill(model: Model) -> None:
    name, texts = _FILL
    _say(f"\n1  Fill the blanks · 填空  ({name})", bold=True)
    for text in texts:
        print_text(f"{_INDENT}{text}")
        filled = model.fill(text, max_tokens=40, seed=_SEED)
        column = Column()
        end = 0
        for blank in filled.blanks:
            column.write(filled.text[end : blank.start])
            column.write(blank.text, bold=True)
            end = blank.end
        column.write(filled.text[end:])
        column.close()
        report_answer(filled.stats, model.plan)


def _show_write(model: Model) -> None:
    name, opening = _WRITE
    _say(f"\n2  Write on · 续写  ({name})", bold=True)
    column = Column()
    column.write(opening)
    with model.write(opening, max_tokens=100, seed=_SEED, stream=True) as stream:
        column.write_all(stream, end="……")
    report_answer(stream.stats, model.plan)


def _show_chat(model: Model) -> None:
    name, questions = _CHAT
    _say(f"\n3  Chat · 对话  ({name})", bold=True)
    messages: list[dict[str, str]] = []
    for question in questions:
        print_text(f"{_INDENT}> {question}")
        messages.append({"role": "user", "content": question})
        pieces: list[str] = []
        column = Column()
        with model.chat(messages, max_tokens=60, seed=_SEED, stream=True) as stream:
            column.write_all(_kept(stream, pieces))
        messages.append({"role": "assistant", "content": "".join(pieces)})
        report_answer(stream.stats, model.plan)


def _kept(pieces: Iterable[str], kept: list[str]) -> Iterable[str]:
    for piece in pieces:
        kept.append(piece)
        yield piece


class Column:
    """Writes streamed text indented and broken at 76 columns, as Chinese is: at any character."""

    def __init__(self) -> None:
        from rich.cells import cell_len

        self._cell_len = cell_len
        self._column = 0

    def write(self, piece: str, bold: bool = False) -> None:
        """Write a piece now; bold is for terminals only."""
        lines = [""]
        for character in shown(piece):
            width = self._cell_len(character)
            if character == "\n" or self._column + width > _WIDTH:
                lines.append("")
                self._column = 0
                if character == "\n":
                    continue
            if self._column == 0:
                lines[-1] += _INDENT
                self._column = len(_INDENT)
            lines[-1] += character
            self._column += width
        _emit("\n".join(lines), bold)

    def write_all(self, pieces: Iterable[str], end: str = "") -> None:
        """Write the pieces as they come and end the line, also where that is interrupted."""
        try:
            for piece in pieces:
                self.write(piece)
            self.write(end)
        finally:
            self.close()

    def close(self) -> None:
        """End the line."""
        _emit("\n")


def _say(text: str, bold: bool = False) -> None:
    _emit(text + "\n", bold)


def _emit(text: str, bold: bool = False) -> None:
    if bold and sys.stdout.isatty():
        text = click.style(text, bold=True)
    sys.stdout.write(text)
    sys.stdout.flush()


def _program() -> str:
    """What to type for this program: its name, or its path where a shell would not find it."""
    if shutil.which("martlet"):
        return "martlet"
    beside = Path(sys.executable).with_name("martlet")
    if not beside.exists():
        return "python -m martlet"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
