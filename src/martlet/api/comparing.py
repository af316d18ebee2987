"""The same text under several models or formats of one, each beside the first.

One model at a time is in memory, with all of the budget: two would halve it, and a model that just
fits could not be compared at all. What the first predicts waits in a temporary file.
"""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from martlet.api.loading import load
from martlet.api.model import Model
from martlet.api.opening import open_model
from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.divergence import Divergence, Reference
from martlet.compression.perplexity import TextScore
from martlet.compression.recipe import bits_per_weight
from martlet.errors import UsageError

__all__ = ["FormatScore", "Variant", "compare_formats"]

Progress = Callable[[int, int, str], None]
"""Called with (tokens scored, tokens to score under all variants, which one is at work)."""


@dataclass(frozen=True)
class Variant:
    """A model, and the form that its weights take while they are loaded; None = as stored."""

    model: str | Path
    quantize: str | None = None

    @property
    def label(self) -> str:
        """For people: "cpm1-mini", "cpm1-mini int4"."""
        return f"{self.model} {self.quantize}" if self.quantize else str(self.model)


@dataclass(frozen=True)
class FormatScore:
    """How a variant did.

    ``format`` names the formats of its matrices, that of the most weights first, joined by "+"; a
    model without integers has its float type. ``perplexity_change`` and ``divergence`` are against
    the first variant, whose own are 0, 0 and 1; None where the two do not split the text into the
    same tokens, and only bits per character compare.

    Units:
        perplexity_change: a fraction, 0.01 is one per cent.
        seconds: of scoring, without loading.
    """

    variant: Variant
    format: str
    bits_per_weight: float
    score: TextScore
    perplexity_change: float | None
    divergence: Divergence | None
    placement: str
    seconds: float


def compare_formats(
    variants: Sequence[Variant],
    text: str,
    options: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Iterator[FormatScore]:
    """Score the text under each variant in turn, and give each score as soon as it is there.

    ``options`` are keyword arguments of ``load`` for all of them, without ``quantize``. All models
    are looked for, and their files opened, before the first is loaded.

    Raises:
        UsageError: there is no variant, or the text has fewer than two tokens.
        DiskFullError: the temporary folder has no room.
        ModelNotFoundError, ModelFileError, CapacityError: as ``load``.
    """
    if not variants:
        raise UsageError("there is no model to score the text with; name at least one")
    weights = [_planned_weights(variant) for variant in variants]
    with contextlib.ExitStack() as stack:
        reference: _ScoredReference | None = None
        change: float | None
        divergence: Divergence | None
        for number, variant in enumerate(variants):
            steps = _steps(progress, number, len(variants), variant.label)
            model = load(variant.model, quantize=variant.quantize, **(options or {}))
            started = time.perf_counter()
            if reference is None:
                is_kept = len(variants) > 1
                reference = _ScoredReference(stack, model, text, steps, is_kept=is_kept)
                score = reference.score
                change, divergence = 0.0, Divergence(0.0, 1.0, score.num_tokens)
            else:
                score, change, divergence = reference.compare(model, text, steps)
            placement, seconds = model.plan.describe(), time.perf_counter() - started
            del model
            _give_back_memory()
            name, bits = _format_names(weights[number]), bits_per_weight(weights[number])
            yield FormatScore(variant, name, bits, score, change, divergence, placement, seconds)


class _ScoredReference:
    """What the first variant makes of the text; ``stack`` closes its file."""

    def __init__(
        self,
        stack: contextlib.ExitStack,
        model: Model,
        text: str,
        steps: Callable[[int, int], None],
        *,
        is_kept: bool,
    ) -> None:
        self._token_ids = model.tokenizer.encode(text)
        self._kept: Reference | None = None
        if is_kept:
            self._kept = stack.enter_context(Reference(len(self._token_ids)))
        observe = self._kept.observe if self._kept else None
        self.score = model.score_text(text, progress=steps, observe=observe)

    def compare(
        self, model: Model, text: str, steps: Callable[[int, int], None]
    ) -> tuple[TextScore, float | None, Divergence | None]:
        """(score, perplexity change, divergence) of another variant."""
        assert self._kept is not None
        if model.tokenizer.encode(text) != self._token_ids:
            return model.score_text(text, progress=steps), None, None
        comparison = self._kept.comparison()
        score = model.score_text(text, progress=steps, observe=comparison.observe)
        divergence = comparison.measured()
        change = None if divergence is None else _change(score, self.score)
        return score, change, divergence


def _change(score: TextScore, reference: TextScore) -> float:
    """By how much the perplexity is higher, as a fraction; without its possible overflow."""
    nats = (
        score.negative_log_likelihood / score.num_tokens
        - reference.negative_log_likelihood / reference.num_tokens
    )
    return math.expm1(min(nats, 700.0))


def _steps(
    progress: Progress | None, number: int, num_variants: int, label: str
) -> Callable[[int, int], None]:
    def step(done: int, total: int) -> None:
        if progress is not None:
            progress(number * total + done, num_variants * total, label)

    return step


def _planned_weights(variant: Variant) -> list[PlannedWeight]:
    """Every weight in the form in which the variant is computed."""
    forms = open_model(variant.model).forms(variant.quantize)
    planned = []
    for block in forms.specs:
        stored = {weight.name: weight for weight in forms.files.block_weights(block.name)}
        for tensor in block.tensors:
            weight = stored[block.prefix + tensor.name]
            # Integers that become floats do so in float32, in which they are multiplied out.
            dtype = weight.form if isinstance(weight.form, torch.dtype) else torch.float32
            form = forms.format_of(block, tensor) or dtype
            planned.append(PlannedWeight(block.prefix + tensor.name, tensor.shape, form))
    return planned


def _format_names(weights: Sequence[PlannedWeight]) -> str:
    """The formats of integers, that of the most weights first; the commonest float without any."""
    integers: Counter[str] = Counter()
    floats: Counter[str] = Counter()
    for weight in weights:
        if weight.format is not None:
            integers[weight.format.name] += weight.numel
        else:
            floats[str(weight.form).removeprefix("torch.")] += weight.numel
    if not integers:
        return floats.most_common(1)[0][0]
    return "+".join(name for name, _ in integers.most_common())


def _give_back_memory() -> None:
    """The next model plans with what is free, so nothing of the last may linger."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
