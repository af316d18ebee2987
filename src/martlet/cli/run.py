"""martlet run: whatever the model is best at."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from martlet.cli.answer import load_model, report_answer, text_or_standard_input
from martlet.cli.chat import Dialogue, talk
from martlet.cli.conversation import converse
from martlet.cli.fill import fill_and_print
from martlet.cli.options import (
    TEXT,
    LoadOptions,
    SamplingOptions,
    load_options,
    model_argument,
    sampling_options,
)
from martlet.cli.output import is_interactive, stream_text
from martlet.cli.write import write_and_print
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.api import Model

__all__ = ["answer", "command"]

_GREETINGS = {
    "cpm2": "type a text with blanks (__) to be filled, or an opening; Ctrl-D leaves",
    "t5": "type a text with blanks (__) to be filled, or a task; Ctrl-D leaves",
}


@click.command("run")
@model_argument
@click.argument("prompt", type=TEXT, required=False)
@sampling_options
@load_options
def command(
    model: str, prompt: str | None, sampling: SamplingOptions, loading: LoadOptions
) -> None:
    """Answer PROMPT with what MODEL is best at: chat, fill the blanks, or write on.

    Without PROMPT on a terminal, line after line is answered; otherwise stdin is the prompt.
    """
    if prompt is None and is_interactive():
        _converse(load_model(model, loading), model, sampling)
        return
    prompt = text_or_standard_input(prompt, "PROMPT")
    answer(load_model(model, loading), model, prompt, sampling)


def answer(model: Model, name: str, prompt: str, sampling: SamplingOptions) -> None:
    """Answer once, with the task that fits the model and the prompt."""
    from martlet.models.family import TASKS_OF_FAMILY

    tasks = TASKS_OF_FAMILY[model.family]
    if "chat" in tasks:
        Dialogue(model, sampling).answer(prompt)
    elif "fill" in tasks and _has_blank(prompt):
        fill_and_print(model, name, prompt, sampling, as_json=False)
    elif "write" in tasks:
        write_and_print(model, prompt, sampling)
    else:
        with model.generate(prompt, stream=True, **sampling.arguments()) as stream:
            stream_text(stream, [])
        report_answer(stream.stats, model.plan)


def _converse(model: Model, name: str, sampling: SamplingOptions) -> None:
    from martlet.models.family import TASKS_OF_FAMILY

    if "chat" in TASKS_OF_FAMILY[model.family]:
        talk(model, sampling)
        return
    greeting = _GREETINGS.get(model.family, "type an opening; Ctrl-D leaves")
    converse(greeting, lambda line: answer(model, name, line, sampling), {})


def _has_blank(text: str) -> bool:
    from martlet.engine.fill import split_at_blanks

    try:
        split_at_blanks(text)
    except UsageError:
        return False
    return True
