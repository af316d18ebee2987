"""martlet run: whatever the model is best at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import click

from martlet.cli.answer import load_model, report_answer, report_speed
from martlet.cli.answer_form import Form, form_options, print_answer
from martlet.cli.chat import answer_messages, opening_messages, talk
from martlet.cli.fill import fill_and_print
from martlet.cli.options import (
    TEXT,
    ChatOptions,
    LoadOptions,
    Sampling,
    SamplingOptions,
    chat_options,
    load_options,
    sampling_options,
)
from martlet.cli.output import is_interactive, prompt_with_standard_input
from martlet.cli.process import ending_quietly
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.api import Model
    from martlet.engine.text import TextStream

__all__ = ["command"]

_GREETINGS = {
    "cpm2": "type a text with blanks (__) or an opening",
    "t5": "type a text with blanks (__) or a task",
}


@click.command("run")
@click.argument("model", type=TEXT, required=False)
@click.argument("prompt", type=TEXT, required=False)
@chat_options
@form_options
@sampling_options
@load_options
def command(
    model: str | None,
    prompt: str | None,
    form: Form,
    chatting: ChatOptions,
    sampling: SamplingOptions,
    loading: LoadOptions,
) -> None:
    """Answer PROMPT with what MODEL is best at: chat, fill the blanks, or write on.

    Without PROMPT on a terminal, what is typed is answered, entry by entry; /help lists what else
    can be typed. A text piped into stdin is the prompt, or follows PROMPT. Without MODEL, one of
    those that are here is chosen.
    """
    begun = opening_messages(chatting)
    with ending_quietly():
        if model is None:
            from martlet.cli.choose_model import choose_model

            model = choose_model(loading)
        if prompt is None and is_interactive():
            if form != "text":
                raise UsageError("--json needs a PROMPT, or a text piped into stdin; give one")
            _converse(load_model(model, loading), model, chatting, sampling)
            return
        prompt = prompt_with_standard_input(prompt)
        loaded = load_model(model, loading)
        if loaded.tasks[0] == "chat":
            messages = [*begun, {"role": "user", "content": prompt}]
            answer_messages(loaded, model, messages, form, chatting, sampling)
        else:
            _require_no_chat_flags(loaded, chatting)
            _answer(loaded, model, prompt, sampling, form)


def _answer(model: Model, name: str, prompt: str, sampling: Sampling, form: Form) -> None:
    """Answer once, with the task that fits the model and the prompt."""
    if _is_to_fill(model, prompt):
        if form == "lines":
            raise UsageError("blanks are filled together, so --stream has nothing to stream")
        report_answer(fill_and_print(model, name, prompt, sampling, form == "json"), model.plan)
        return
    word = "opening" if "write" in model.tasks else "prompt"
    stream = _stream(model, prompt, sampling)
    print_answer(stream, form, {"model": name, word: prompt}, model.plan)


def _converse(model: Model, name: str, chatting: ChatOptions, sampling: SamplingOptions) -> None:
    if model.tasks[0] == "chat":
        talk(model, sampling, opening_messages(chatting), chatting.think)
        return
    _require_no_chat_flags(model, chatting)
    from martlet.cli.repl.session import hold_texts
    from martlet.cli.repl.settings import Settings
    from martlet.cli.streaming import Answer, show_answer

    settings = Settings(sampling.arguments())

    def answer(text: str) -> None:
        if _is_to_fill(model, text):
            report_speed(fill_and_print(model, name, text, settings, as_json=False))
            return
        stream = _stream(model, text, settings)
        show_answer(stream, Answer(), keeps_session=True)
        task: Literal["write", "generate"] = "write" if "write" in model.tasks else "generate"
        params = model.sampling_params(task, **settings.arguments())
        report_speed(stream.stats, params.max_tokens)

    hold_texts(model, settings, _GREETINGS.get(model.family, "type an opening"), answer)


def _stream(model: Model, prompt: str, sampling: Sampling) -> TextStream:
    if "write" in model.tasks:
        return model.write(prompt, stream=True, **sampling.arguments())
    return model.generate(prompt, stream=True, **sampling.arguments())


def _is_to_fill(model: Model, text: str) -> bool:
    from martlet.engine.fill import split_at_blanks

    if "fill" not in model.tasks:
        return False
    try:
        split_at_blanks(text)
    except UsageError:
        return False
    return True


def _require_no_chat_flags(model: Model, chatting: ChatOptions) -> None:
    if chatting != ChatOptions(None, None):
        raise UsageError(
            f"{model.name} does not chat, so it takes neither --system nor --think; leave them out"
        )
