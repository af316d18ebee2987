"""CPM1, CPM2 and EVA with the names and arguments of BMInf 1.x, so that its scripts run here.

Results are those of BMInf 1.0: ``generate`` and ``dialogue`` give (text, whether it ended by
itself), ``fill_blank`` gives as many answers as there are blanks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from martlet.api.loading import load
from martlet.api.model import Model
from martlet.errors import UsageError

__all__ = ["CPM1", "CPM2", "EVA"]

_SPAN = "<span>"
_FILE_SCHEME = "file:"


class _BMInfModel:
    """What the three classes share.

    Args:
        device_idx: 0 = the GPU; None = the GPU where the model fits, else the CPU.
        dynamic_memory: bytes for activations, on top of ``memory_limit`` as in BMInf.
        memory_limit: bytes of GPU memory for weights; None = what is free.
        version: a model as ``martlet.load`` takes it, or "file:///folder"; None = the bundled one.
    """

    _bundled: str

    def __init__(
        self,
        device_idx: int | None = None,
        dynamic_memory: int = 512 << 20,
        memory_limit: int | None = None,
        version: str | Path | None = None,
    ) -> None:
        if device_idx not in (None, 0):
            raise UsageError(f"device_idx is {device_idx!r}; only GPU 0 or None is supported")
        self._model: Model | None = load(
            self._bundled if version is None else _folder_or_name(version),
            gpu_memory=None if memory_limit is None else memory_limit + dynamic_memory,
            device="auto" if device_idx is None else "cuda",
        )

    @property
    def model(self) -> Model:
        """The model behind the old names.

        Raises:
            UsageError: ``free`` was called.
        """
        if self._model is None:
            raise UsageError("the model was freed; make another one")
        return self._model

    def free(self) -> None:
        """Let go of the weights."""
        self._model = None

    def _ended_by_itself(self) -> bool:
        stats = self.model.last_stats
        return stats is not None and stats.finish_reason in ("eos", "stop")


class _Writer(_BMInfModel):
    def generate(  # noqa: PLR0913  (the signature of BMInf)
        self,
        input_sentence: str,
        max_tokens: int = 128,
        top_n: int | None = None,
        top_p: float | None = None,
        temperature: float = 0.9,
        frequency_penalty: float = 0,
        presence_penalty: float = 0,
        stop_tokens: Sequence[str] | None = None,
    ) -> tuple[str, bool]:
        """What follows a text, and whether it ended by itself."""
        text = self.model.write(
            input_sentence,
            max_tokens=max_tokens,
            stop=list(stop_tokens or ()),
            **_sampling(top_n, top_p, temperature, frequency_penalty, presence_penalty),
        )
        return text, self._ended_by_itself()


class CPM1(_Writer):
    """CPM-1, which writes."""

    _bundled = "cpm1-mini"


class CPM2(_Writer):
    """CPM-2, which fills blanks and writes."""

    _bundled = "cpm2-mini"

    def fill_blank(  # noqa: PLR0913  (the signature of BMInf)
        self,
        input_sentence: str,
        spans_position: Sequence[int] | None = None,
        max_tokens: int = 128,
        top_n: int | None = None,
        top_p: float | None = None,
        temperature: float = 0.9,
        frequency_penalty: float = 0,
        presence_penalty: float = 0,
    ) -> list[dict[str, Any]]:
        """The answers to the blanks, each written ``<span>``: [{"position": ..., "text": ...}].

        ``spans_position`` names the places of the blanks to fill, in characters; None = all.

        Raises:
            UsageError: there is no blank, or none where a position says.
        """
        positions = _positions(input_sentence, spans_position)
        starts = [0, *(position + len(_SPAN) for position in positions)]
        ends = [*positions, len(input_sentence)]
        filled = self.model.fill(
            [input_sentence[start:end] for start, end in zip(starts, ends, strict=True)],
            max_tokens=max_tokens,
            **_sampling(top_n, top_p, temperature, frequency_penalty, presence_penalty),
        )
        return [
            {"position": position, "text": blank.text}
            for position, blank in zip(positions, filled.blanks, strict=True)
        ]


class EVA(_BMInfModel):
    """EVA, which talks."""

    _bundled = "eva-mini"

    def dialogue(  # noqa: PLR0913  (the signature of BMInf)
        self,
        context: Sequence[str],
        max_tokens: int = 128,
        top_n: int | None = 10,
        top_p: float | None = None,
        temperature: float = 0.85,
        frequency_penalty: float = 0,
        presence_penalty: float = 0,
        truncation_length: int | None = 256,
    ) -> tuple[str, bool]:
        """The answer to the last of some turns, and whether it ended by itself.

        Turns are left out as a whole, the oldest first, until ``truncation_length`` tokens are
        not exceeded; None = what the model was trained to read.
        """
        if isinstance(context, str):
            raise UsageError("context is a string; it must be the list of the turns so far")
        roles = ("user", "assistant")
        messages = [
            {"role": roles[(len(context) - 1 - index) % 2], "content": turn}
            for index, turn in enumerate(context)
        ]
        text = self.model.chat(
            messages,
            max_tokens=max_tokens,
            max_input_tokens=truncation_length,
            **_sampling(top_n, top_p, temperature, frequency_penalty, presence_penalty),
        )
        return text, self._ended_by_itself()


def _sampling(
    top_n: int | None,
    top_p: float | None,
    temperature: float,
    frequency_penalty: float,
    presence_penalty: float,
) -> dict[str, Any]:
    """BMInf's arguments under their names here; what BMInf did not have is off."""
    return {
        "top_k": 0 if top_n is None else top_n,
        "top_p": 1.0 if top_p is None else top_p,
        "min_p": 0.0,
        "temperature": temperature,
        "repetition_penalty": 1.0,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
    }


def _folder_or_name(version: str | Path) -> str | Path:
    if isinstance(version, str) and version.startswith(_FILE_SCHEME):
        return Path(unquote(urlsplit(version).path))
    return version


def _positions(text: str, given: Sequence[int] | None) -> list[int]:
    if given is None:
        parts = text.split(_SPAN)[:-1]
        positions: list[int] = []
        for part in parts:
            positions.append((positions[-1] + len(_SPAN) if positions else 0) + len(part))
    else:
        positions = sorted(given)
    for position in positions:
        if position < 0 or not text.startswith(_SPAN, position):
            raise UsageError(f"there is no {_SPAN} at position {position} of the text")
    if not positions:
        raise UsageError(f"the text has no {_SPAN}; write it where words are missing")
    return positions
