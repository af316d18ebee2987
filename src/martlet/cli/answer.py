"""What all verbs that answer have in common: the model, the text to answer, the line after it."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from martlet.cli.fetching import locate_model
from martlet.cli.options import LoadOptions
from martlet.cli.output import duration, note, read_standard_input
from martlet.cli.progress import Loading
from martlet.errors import UsageError

if TYPE_CHECKING:
    from martlet.api import Model
    from martlet.engine.request import Stats
    from martlet.memory.plan import Plan

__all__ = [
    "describe_speed",
    "load_model",
    "report_answer",
    "report_speed",
    "stats_fields",
    "text_or_standard_input",
]


def load_model(name: str, loading: LoadOptions) -> Model:
    """The model of that name, placed as the flags ask; fetched first where it is not here."""
    locate_model(name)
    with Loading(f"loading {name}") as shown:
        # Imported here, so that the spinner turns while torch is imported.
        from martlet.api import load

        return load(name, **loading.arguments(), progress=shown.update)


def text_or_standard_input(text: str | None, what: str) -> str:
    """The argument, or stdin where it is left out or "-".

    Raises:
        UsageError: there is no text.
    """
    if text is None or text == "-":
        return read_standard_input()
    if not text.strip():
        raise UsageError(f"{what} is empty; give at least one character")
    return text


def report_answer(stats: Stats | None, plan: Plan) -> None:
    """Say on stderr how fast the answer came and where the weights live."""
    if stats is None:  # the answer was stopped
        note(f"stopped; {plan.describe()}")
        return
    note(f"{describe_speed(stats)}; {plan.describe()}")


def report_speed(stats: Stats | None, max_tokens: int | None = None) -> None:
    """Say on stderr how fast an answer of a session came, and what ended it if not the model.

    ``max_tokens`` is what the answer could have; None where it does not matter.
    """
    if stats is None:
        note("stopped")
        return
    end = ""
    if stats.finish_reason == "cancelled":
        end = "; stopped"
    elif stats.finish_reason == "length" and max_tokens is not None:
        end = "; max_tokens reached" if stats.output_tokens >= max_tokens else "; context full"
    note(describe_speed(stats) + end)


def describe_speed(stats: Stats) -> str:
    """Tokens, tokens per second and the time to the first, for people."""
    speed = f"{stats.tokens_per_second:.1f} tokens/s, " if stats.tokens_per_second else ""
    return (
        f"{stats.output_tokens} tokens, {speed}first token after {duration(stats.prefill_seconds)}"
    )


def stats_fields(stats: Stats) -> dict[str, Any]:
    """The stats as JSON has them."""
    return {**asdict(stats), "tokens_per_second": stats.tokens_per_second}
