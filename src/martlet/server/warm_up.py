"""What would make the first answer of a process late, done before there is anybody to wait."""

from __future__ import annotations

from typing import Any

from martlet.api.model import Model
from martlet.api.prepared import PromptKind
from martlet.engine.batch import Batch, Event
from martlet.engine.request import Finished
from martlet.errors import CapacityError, MartletError

__all__ = ["warm_up"]

# Any text will do: what counts is that the dictionary of the tokenizer is read, weights are touched
# and kernels are there.
_WORD = "你好"
_EXAMPLES: dict[PromptKind, Any] = {
    "chat": [{"role": "user", "content": _WORD}],
    "write": _WORD,
    "fill": [_WORD, _WORD],
}


def warm_up(model: Model, batch: Batch) -> float | None:
    """Make the batch's steps ready and write a few tokens that nobody sees.

    Returns their speed after the first, in tokens per second; None where there was no second.

    Raises:
        CapacityError: there is no memory for that, so there would be none for a request.
    """
    speed = None

    def note_speed(event: Event) -> None:
        nonlocal speed
        if isinstance(event, Finished):
            speed = event.stats.tokens_per_second or None

    kind = model.tasks[0]
    try:
        prepared = model.prepare(kind, _EXAMPLES[kind], max_tokens=4, temperature=0.0)
        batch.warm_up(prepared.request, note_speed)
    except CapacityError:
        raise
    except MartletError:
        pass  # a vocabulary that cannot say this word is no reason not to serve
    return speed
