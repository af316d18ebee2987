"""A session at the prompt: what can be typed, for dialogues and for other tasks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from martlet.cli.answer import describe_speed
from martlet.cli.output import note, shown
from martlet.cli.repl.commands import Command, Commands
from martlet.cli.repl.conversation import converse
from martlet.cli.repl.dialogue import Dialogue
from martlet.cli.repl.history import History, history_path
from martlet.cli.repl.line_reader import LineReader
from martlet.cli.repl.message_file import read_messages, write_messages
from martlet.cli.repl.settings import Settings
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.api import Model
    from martlet.models.family import Task

__all__ = ["hold_dialogue", "hold_texts"]

_THINKING = {"on": True, "off": False, "auto": None}
_FORCE = "--force"


def hold_dialogue(model: Model, dialogue: Dialogue, settings: Settings) -> None:
    """Turns until the person leaves."""
    reader = LineReader(History(history_path()))
    typed = _TypedDialogue(dialogue, reader)
    shown = _Shown(model, settings, "chat", typed.describe)
    commands = [*typed.commands(), *shown.commands()]
    _hold(model, "type a turn", reader, commands, dialogue.answer)


def hold_texts(
    model: Model, settings: Settings, greeting: str, answer: Callable[[str], None]
) -> None:
    """Texts that have nothing to do with one another, until the person leaves."""
    last = ""

    def answer_next(text: str) -> None:
        nonlocal last
        last = text
        answer(text)

    def retry(_: str) -> None:
        if not last:
            raise UsageError("there is no text to answer again; type one")
        answer(last)

    shown = _Shown(model, settings, model.tasks[0], list)
    commands = [Command("/retry", "", "answer the last text again", retry), *shown.commands()]
    _hold(model, greeting, LineReader(History(history_path())), commands, answer_next)


def _hold(
    model: Model,
    greeting: str,
    reader: LineReader,
    commands: list[Command],
    answer: Callable[[str], None],
) -> None:
    every = Commands(commands)
    reader.completions = every.completions
    note(f"{model.name}: {model.plan.describe()}")
    note(f"{greeting}; /help lists commands, Ctrl-D leaves")
    converse(reader, every, answer)


class _Shown:
    """/set and /show; ``more`` gives further rows of /show."""

    def __init__(
        self,
        model: Model,
        settings: Settings,
        task: Task,
        more: Callable[[], list[tuple[str, str]]],
    ) -> None:
        self._model = model
        self._settings = settings
        self._task = task
        self._more = more

    def commands(self) -> list[Command]:
        names = tuple(f"{name} " for name in self._settings.names)
        summary = "change how tokens are chosen, as in /set temperature 0.5"
        return [
            Command("/set", "NAME VALUE", summary, self._set, names),
            Command("/show", "", "settings, model, plan, last speed", self._show),
        ]

    def _set(self, text: str) -> None:
        note(self._settings.set(text))

    def _show(self, _: str) -> None:
        model = self._model
        in_force = model.sampling_params(self._task, **self._settings.arguments())
        speed = model.last_stats and describe_speed(model.last_stats)
        rows = [
            ("model", f"{model.name}, family {model.family}, {model.weight_type} weights"),
            ("plan", model.plan.describe().replace("; ", f"\n{'':22}")),
            *self._more(),
            *((name, value) for name, value in self._settings.describe(in_force)),
            ("last answer", speed or "none yet"),
        ]
        for name, value in rows:
            click.echo(f"  {name:<18}  {value}", err=True)


class _TypedDialogue:
    """The commands that a dialogue has beside those of every session."""

    def __init__(self, dialogue: Dialogue, reader: LineReader) -> None:
        self._dialogue = dialogue
        self._reader = reader

    def commands(self) -> list[Command]:
        return [
            Command("/retry", "", "answer the last turn again", self._retry),
            Command("/reset", "", "forget all turns", self._reset),
            Command("/system", "[TEXT]", "tell the model something first; none: nothing",
                    self._system),
            Command("/think", "on|off|auto", "let the model think before it answers, or not",
                    self._think, tuple(_THINKING)),
            Command("/save", f"[{_FORCE}] FILE", "write the dialogue as JSON",
                    self._save, (f"{_FORCE} ",), takes_file=True),
            Command("/load", "FILE", "go on from a dialogue in a JSON file",
                    self._load, takes_file=True),
        ]  # fmt: skip

    def describe(self) -> list[tuple[str, str]]:
        """Rows of /show."""
        dialogue = self._dialogue
        thinking = next(word for word, value in _THINKING.items() if value is dialogue.thinking)
        return [
            ("turns", str(len(dialogue.turns))),
            ("system", shown(dialogue.system, sys.stderr) or "none"),
            ("think", thinking),
        ]

    def _retry(self, _: str) -> None:
        self._dialogue.retry()

    def _reset(self, _: str) -> None:
        self._dialogue.turns = []
        kept = "; the system text stays" if self._dialogue.system else ""
        note(f"all turns are forgotten{kept}")

    def _system(self, text: str) -> None:
        if text:
            self._dialogue.set_system("" if text == "none" else text)
        note(f"system: {shown(self._dialogue.system, sys.stderr) or 'none'}")

    def _think(self, text: str) -> None:
        if text not in _THINKING:
            raise UsageError(f"/think is on, off or auto, got {text!r:.40}")
        self._dialogue.set_thinking(_THINKING[text])
        note(f"think: {text}")

    def _save(self, text: str) -> None:
        is_forced = text.split(" ")[0] == _FORCE
        path = _path(text.removeprefix(_FORCE) if is_forced else text, "/save")
        if not self._dialogue.turns:
            raise UsageError("there is nothing to save yet; type a turn")
        if not is_forced and path.exists() and not self._agrees(f"{path} exists; replace it?"):
            note("not saved")
            return
        write_messages(path, self._dialogue.messages)
        note(f"saved {_count(self._dialogue.messages)} to {path}")

    def _load(self, text: str) -> None:
        messages = read_messages(_path(text, "/load"))
        self._dialogue.replace(messages)
        is_open = messages[-1]["role"] == "user"
        note(f"loaded {_count(messages)}{'; /retry answers the last' if is_open else ''}")

    def _agrees(self, question: str) -> bool:
        try:
            return self._reader.read_line(f"{question} [y/N] ").strip().lower() in ("y", "yes")
        except EOFError:
            click.echo(err=True)
            return False


def _path(text: str, command: str) -> Path:
    name = text.strip()
    if not name:
        raise UsageError(f"{command} needs the name of a file")
    if "\0" in name:
        raise UsageError(f"{name!r:.40} is no name of a file")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UsageError(f"{name:.80}: {error}; give the whole path") from error


def _count(messages: Sequence[object]) -> str:
    return f"{len(messages)} message{'s' if len(messages) > 1 else ''}"
