"""A dialogue with a model: the turns so far, and the answer to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from martlet.cli.answer import report_speed
from martlet.cli.output import note
from martlet.cli.repl.settings import Settings
from martlet.cli.streaming import Answer, show_answer
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.api import Model
    from martlet.engine.text import TextStream

__all__ = ["Dialogue"]


class Dialogue:
    """The turns so far; the model reads as many of the newest as its context holds.

    Attributes:
        system: what the model is told before all turns; "" for nothing.
        turns: what was said since, the person's and the model's.
        thinking: whether the model is to think before it answers; None leaves it to the model.
    """

    def __init__(self, model: Model, settings: Settings) -> None:
        self.system = ""
        self.turns: list[dict[str, str]] = []
        self.thinking: bool | None = None
        self._model = model
        self._settings = settings

    @property
    def messages(self) -> list[dict[str, str]]:
        """The system's message, if there is one, and the turns."""
        return _with_system(self.system, self.turns)

    def set_system(self, text: str) -> None:
        """Tell the model something before all turns; "" tells nothing.

        Raises:
            UsageError: this model cannot be told.
        """
        self._check(text, [], self.thinking)
        self.system = text

    def set_thinking(self, thinking: bool | None) -> None:
        """Choose whether the model thinks before it answers.

        Raises:
            UsageError: this model has no choice.
        """
        self._check(self.system, [], thinking)
        self.thinking = thinking

    def replace(self, messages: Sequence[dict[str, str]]) -> None:
        """Go on from other messages.

        Raises:
            UsageError: this model cannot be given them.
        """
        has_system = bool(messages) and messages[0]["role"] == "system"
        system = messages[0]["content"] if has_system else ""
        turns = list(messages[1:] if has_system else messages)
        self._check(system, turns, self.thinking)
        self.system, self.turns = system, turns

    def answer(self, text: str) -> None:
        """Answer a turn on stdout and say how it went.

        What was said counts as the answer also where it was stopped; a turn that got no answer
        at all is forgotten, so that turns always alternate.
        """
        self._answer([*self.turns, {"role": "user", "content": text}])

    def retry(self) -> None:
        """Answer the last turn again; the answer that is there stays where no other comes.

        Raises:
            UsageError: there is no turn yet.
        """
        turns = list(self.turns)
        if turns and turns[-1]["role"] == "assistant":
            turns.pop()
        if not turns:
            raise UsageError("there is no turn to answer again; type one")
        if "seed" in self._settings.arguments():
            note("the seed is set, so the answer is the same; /set seed default frees it")
        self._answer(turns)

    def _answer(self, turns: list[dict[str, str]]) -> None:
        stream = self._stream(self.system, turns, self.thinking)
        answer = Answer()
        try:
            show_answer(stream, answer, keeps_session=True)
        finally:
            if answer.text.strip():
                self.turns = [*turns, {"role": "assistant", "content": answer.text}]
            elif answer.has_begun:
                note("no answer came, so the turn is forgotten")
        params = self._model.sampling_params("chat", **self._settings.arguments())
        report_speed(stream.stats, params.max_tokens)

    def _check(self, system: str, turns: list[dict[str, str]], thinking: bool | None) -> None:
        """Let the model judge what it would be given; nothing is computed."""
        if not turns or turns[-1]["role"] == "assistant":
            turns = [*turns, {"role": "user", "content": "?"}]
        self._stream(system, turns, thinking).close()

    def _stream(
        self, system: str, turns: list[dict[str, str]], thinking: bool | None
    ) -> TextStream:
        return self._model.chat(
            _with_system(system, turns),
            stream=True,
            thinking=thinking,
            **self._settings.arguments(),
        )


def _with_system(system: str, turns: list[dict[str, str]]) -> list[dict[str, str]]:
    beginning = [{"role": "system", "content": system}] if system else []
    return [*beginning, *turns]
