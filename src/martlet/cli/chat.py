"""martlet chat: turns with a dialogue model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from martlet.cli.answer import load_model, report_answer
from martlet.cli.conversation import converse
from martlet.cli.options import (
    LoadOptions,
    SamplingOptions,
    load_options,
    model_argument,
    sampling_options,
)
from martlet.cli.output import is_interactive, note, read_standard_input, stream_text

if TYPE_CHECKING:
    from martlet.api import Model

__all__ = ["Dialogue", "command", "talk"]


@click.command("chat")
@model_argument
@sampling_options
@load_options
def command(model: str, sampling: SamplingOptions, loading: LoadOptions) -> None:
    """Talk with MODEL, turn by turn; what is piped into stdin is one turn.

    /reset forgets all turns, /exit or Ctrl-D leaves, Ctrl-C stops an answer.
    """
    if is_interactive():
        talk(load_model(model, loading), sampling)
        return
    message = read_standard_input()
    Dialogue(load_model(model, loading), sampling).answer(message)


def talk(model: Model, sampling: SamplingOptions) -> None:
    """Turns until the user leaves."""
    dialogue = Dialogue(model, sampling)
    converse("type a turn; Ctrl-D leaves", dialogue.answer, {"/reset": dialogue.reset})


class Dialogue:
    """The turns so far; the model reads as many of the newest as its context holds."""

    def __init__(self, model: Model, sampling: SamplingOptions) -> None:
        self.messages: list[dict[str, str]] = []
        self._model = model
        self._sampling = sampling

    def reset(self) -> None:
        """Forget all turns."""
        self.messages.clear()
        note("all turns are forgotten")

    def answer(self, message: str) -> None:
        """Answer a turn on stdout and say how it went.

        What was said counts as the answer also where it was stopped; a turn that got no answer
        at all is forgotten, so that turns always alternate.
        """
        question = {"role": "user", "content": message}
        written: list[str] = []
        try:
            with self._model.chat(
                [*self.messages, question], stream=True, **self._sampling.arguments()
            ) as stream:
                stream_text(stream, written)
        finally:
            reply = "".join(written)
            if reply.strip():
                self.messages += [question, {"role": "assistant", "content": reply}]
        report_answer(stream.stats, self._model.plan)
