"""What all tasks need of a loaded model: its family's formats, its control tokens, its limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from martlet.engine.generator import Generator
from martlet.errors import ContextLengthError, UsageError, VocabularyError
from martlet.models.family import Task, tasks_of, who_can
from martlet.tokenizers.chat_template import ChatTemplate
from martlet.tokenizers.tokenizer import SpecialTokens, Tokenizer

__all__ = [
    "DEFAULT_MAX_INPUT_TOKENS",
    "DEFAULT_SAMPLING",
    "DEFAULT_TOKENS_PER_BLANK",
    "ChatControl",
    "TaskModel",
]

ChatControl = Literal["system", "thinking", "tools"]
"""What a chat may be told beside its turns: a system message, whether to think first, tools."""

DEFAULT_MAX_INPUT_TOKENS: dict[str, int] = {"cpm2": 512, "eva": 128}
"""What the encoders of these families read at most where the model folder says nothing: the length
that CPM-2 was trained with, and that EVA's own program cuts a dialogue to."""

DEFAULT_SAMPLING: dict[str, dict[str, Any]] = {
    "fill": {"temperature": 0.7, "top_p": 0.9},
    "write": {"max_tokens": 200, "temperature": 0.8, "top_p": 0.9},
    "chat": {"temperature": 0.8, "top_p": 0.9},
    "generate": {"max_tokens": 128, "temperature": 0.8, "top_p": 0.9},
}
"""Sampling parameters of a task where neither the call nor the model folder gives them."""

DEFAULT_TOKENS_PER_BLANK = 32
"""``max_tokens`` of fill is this times the number of blanks, where nothing says otherwise."""


@dataclass(frozen=True)
class TaskModel:
    """A loaded model as the tasks see it.

    ``max_input_tokens`` is what its encoder reads at most; None = no limit but memory.
    ``suppress_tokens`` are ids that no text of this model shall have, beside its control tokens;
    ``end_ids`` those that end one. ``template`` is how a dialogue is put to it, None where it came
    without one.
    """

    name: str
    family: str
    generator: Generator
    max_input_tokens: int | None
    suppress_tokens: tuple[int, ...] = ()
    end_ids: frozenset[int] = frozenset()
    template: ChatTemplate | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        return self.generator.tokenizer

    @property
    def special(self) -> SpecialTokens:
        """The ids that steer the model."""
        return self.tokenizer.special

    @property
    def start_ids(self) -> tuple[int, ...]:
        """What a decoder-only model reads before any text, wherever that text was cut off.

        Most were trained on documents that begin with bos, where the files of their vocabulary
        say so; CPM-1 and GPT-2 read the text alone.
        """
        return self.special.start

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it can be asked for; the first is what it is best at."""
        return tasks_of(self.family, has_template=self.template is not None)

    @property
    def thinks(self) -> bool:
        """Whether its replies may begin with thoughts.

        Raises:
            ModelFileError: the chat template cannot be used.
        """
        return self.template is not None and self.template.thinks

    @property
    def chat_controls(self) -> tuple[ChatControl, ...]:
        """What a chat can be told beside its turns; nothing where there is no template.

        Raises:
            ModelFileError: the chat template cannot be used.
        """
        if self.template is None:
            return ()
        held: dict[ChatControl, bool] = {
            "system": self.template.takes_system,
            "thinking": self.template.has_switch,
            "tools": self.template.tool_format is not None,
        }
        return tuple(name for name, is_held in held.items() if is_held)

    def require(self, task: Task) -> None:
        """Check that the model was trained for a task.

        Raises:
            UsageError: it was not; names the families and bundled models that were.
        """
        if task not in self.tasks:
            can = " or ".join(self.tasks)
            raise UsageError(
                f"{self.name} is of the family {self.family}, which can {can} but not {task}; "
                f"{who_can(task)} can, {_BUNDLED[task]} for one"
            )

    def token(self, name: str) -> int:
        """The id of a special token that the family's format cannot do without.

        Raises:
            VocabularyError: the vocabulary has no such token.
        """
        token_id: int | None = getattr(self.special, name)
        if token_id is None:
            raise VocabularyError(
                f"the vocabulary of {self.name} has no {name} token, which {self.family} models "
                "need; tokenizer and weights do not belong together"
            )
        return token_id

    def sentinels(self, at_least: int) -> tuple[int, ...]:
        """All sentinel ids, in order.

        Raises:
            VocabularyError: there are fewer than the format needs.
        """
        if len(self.special.sentinels) < at_least:
            raise VocabularyError(
                f"the vocabulary of {self.name} has {len(self.special.sentinels)} sentinels and "
                f"{self.family} models need {at_least}; "
                "tokenizer and weights do not belong together"
            )
        return self.special.sentinels

    def suppressed(self, allowed: Sequence[int] = ()) -> Tensor:
        """Tokens that no text is made of.

        These are control tokens but for those allowed, padding rows, and what the folder forbids.

        Shapes:
            return: (vocab_size,) bool, True = must not be chosen
        """
        mask = torch.zeros(self.generator.architecture.vocab_size, dtype=torch.bool)
        mask[self.tokenizer.vocab_size :] = True
        mask[[*self.special.control_ids(), *self.suppress_tokens]] = True
        mask[list(allowed)] = False
        return mask

    def encode(self, text: str, what: str) -> list[int]:
        """The ids of a text; ``what`` is what the error message calls it.

        Raises:
            UsageError: it is not a string.
        """
        if not isinstance(text, str):
            raise UsageError(f"{what} is of type {type(text).__name__}; it must be a string")
        return self.tokenizer.encode(text)

    def prompt_ids(self, prompt: Any, what: str) -> list[int]:
        """The ids of a text, or those that are given in its place.

        Raises:
            UsageError: neither a string nor ids of the vocabulary, or there is nothing.
        """
        if isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes):
            prompt_ids = list(prompt)
            self._require_ids(prompt_ids, what)
        else:
            prompt_ids = self.encode(prompt, what)
        if not prompt_ids:
            raise UsageError(f"{what} is empty; give at least one character")
        return prompt_ids

    def _require_ids(self, prompt_ids: Sequence[object], what: str) -> None:
        vocab_size = self.tokenizer.vocab_size
        for token_id in prompt_ids:
            if type(token_id) is not int or not 0 <= token_id < vocab_size:
                raise UsageError(
                    f"{what} has {token_id!r:.40} among its token ids; it must be a string, or a "
                    f"list of whole numbers from 0 to {vocab_size - 1:,}"
                )

    def require_short(self, num_tokens: int) -> None:
        """Check the length of what the encoder is to read.

        Raises:
            ContextLengthError: it is too long; names both numbers.
        """
        if self.max_input_tokens is not None and num_tokens > self.max_input_tokens:
            raise ContextLengthError(
                f"the text has {num_tokens:,} tokens and {self.name} reads at most "
                f"{self.max_input_tokens:,}; use a shorter text"
            )


_BUNDLED: dict[Task, str] = {"fill": "cpm2-mini", "write": "cpm1-mini", "chat": "eva-mini"}
