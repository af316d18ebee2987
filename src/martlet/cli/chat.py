"""martlet chat: turns with a dialogue model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from martlet.cli.answer import load_model
from martlet.cli.answer_form import Form, form_options, print_answer
from martlet.cli.options import (
    TEXT,
    ChatOptions,
    LoadOptions,
    SamplingOptions,
    chat_options,
    load_options,
    model_argument,
    sampling_options,
)
from martlet.cli.output import is_interactive, read_standard_input
from martlet.cli.process import ending_quietly
from martlet.cli.repl.message_file import Messages, parse_messages, read_messages
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.api import Model

__all__ = ["answer_messages", "command", "opening_messages", "talk"]


@click.command("chat")
@model_argument
@click.option(
    "--messages",
    type=TEXT,
    metavar="FILE",
    help="Go on from the messages in this JSON file, - for stdin, as /save writes them.",
)
@chat_options
@form_options
@sampling_options
@load_options
def command(
    model: str,
    messages: str | None,
    form: Form,
    chatting: ChatOptions,
    sampling: SamplingOptions,
    loading: LoadOptions,
) -> None:
    """Talk with MODEL, turn by turn; what is piped into stdin is one turn.

    At the prompt /help lists all commands; Ctrl-C stops an answer, Ctrl-D leaves. --messages
    with a file that ends with the user's turn answers that turn and nothing else.
    """
    begun = opening_messages(chatting, _read(messages))
    is_open = bool(begun) and begun[-1]["role"] == "user"
    if not is_open and messages != "-" and is_interactive():
        if form != "text":
            raise UsageError("--json takes its turn from a pipe or --messages FILE; give one")
        with ending_quietly():
            talk(load_model(model, loading), sampling, begun, chatting.think)
        return
    if not is_open:
        begun.append({"role": "user", "content": _piped(messages)})
    with ending_quietly():
        answer_messages(load_model(model, loading), model, begun, form, chatting, sampling)


def opening_messages(chatting: ChatOptions, messages: Messages | None = None) -> Messages:
    """What a dialogue begins with by the flags.

    Raises:
        UsageError: --system and messages that begin with the system's too.
    """
    begun = list(messages or [])
    if chatting.system is None:
        return begun
    if not chatting.system.strip():
        raise UsageError("--system is empty; leave it out, or give what the model is told first")
    if begun and begun[0]["role"] == "system":
        raise UsageError("--system and the file of --messages both tell the model; keep one")
    return [{"role": "system", "content": chatting.system}, *begun]


def talk(model: Model, sampling: SamplingOptions, begun: Messages, thinking: bool | None) -> None:
    """Turns at the prompt, until the person leaves."""
    from martlet.cli.repl.dialogue import Dialogue
    from martlet.cli.repl.session import hold_dialogue
    from martlet.cli.repl.settings import Settings

    settings = Settings(sampling.arguments())
    dialogue = Dialogue(model, settings)
    dialogue.replace(begun)
    dialogue.set_thinking(thinking)
    hold_dialogue(model, dialogue, settings)


def answer_messages(
    model: Model,
    name: str,
    messages: Messages,
    form: Form,
    chatting: ChatOptions,
    sampling: SamplingOptions,
) -> None:
    """Answer a dialogue once."""
    stream = model.chat(messages, stream=True, thinking=chatting.think, **sampling.arguments())
    print_answer(stream, form, {"model": name}, model.plan)


def _read(messages: str | None) -> Messages:
    if messages is None:
        return []
    if messages == "-":
        return parse_messages(read_standard_input().encode(), "stdin")
    return read_messages(Path(messages))


def _piped(messages: str | None) -> str:
    if messages == "-":
        raise UsageError("the messages from stdin must end with the user's turn; add one")
    return read_standard_input()
