"""The sampling keywords of a model's methods, and what holds where they are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from martlet.engine.loading import sampling_defaults
from martlet.engine.request import SamplingParams
from martlet.engine.tasks import DEFAULT_SAMPLING
from martlet.errors import ModelFileError, UsageError

__all__ = ["SamplingDefaults", "SamplingOptions"]


class SamplingOptions(TypedDict, total=False):
    """The keywords of every method that generates; see ``SamplingParams``.

    None, or left out, takes the default of the model, else that of the task.
    """

    max_tokens: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    stop: str | Sequence[str] | None
    seed: int | None


class SamplingDefaults:
    """What a model folder and then its tasks say of sampling.

    Raises:
        ModelFileError: generation_config.json, read as ``generation``, has a value out of range.
    """

    def __init__(self, name: str, generation: Mapping[str, Any]) -> None:
        self._of_task = {
            task: [*sampling_defaults(generation, task), DEFAULT_SAMPLING[task]]
            for task in DEFAULT_SAMPLING
        }
        try:
            for defaults in self._of_task.values():
                SamplingParams.from_fields({}, *defaults)
        except UsageError as error:
            raise ModelFileError(f"generation_config.json of {name}: {error}") from error

    def params(
        self, task: str, options: SamplingOptions, *more_defaults: Mapping[str, Any]
    ) -> SamplingParams:
        """The parameters of a call: its keywords, then the defaults.

        Raises:
            UsageError: a value is out of range.
            TypeError: a keyword is none of sampling.
        """
        # The type tells this to a type checker alone; Python itself takes any keyword.
        for name in options:
            if name not in SamplingOptions.__annotations__:
                raise TypeError(
                    f"{name!r} is not a sampling keyword; there are "
                    f"{', '.join(SamplingOptions.__annotations__)}"
                )
        return SamplingParams.from_fields(options, *self._of_task[task], *more_defaults)
