"""The rotary positions that a config.json asks for, in both spellings of transformers.

Version 5 keeps everything in ``rope_parameters``, a group of settings for each type of layers where
they differ; before, the base was ``rope_theta`` and what stretches it ``rope_scaling``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from martlet.errors import ModelFileError
from martlet.layers.rope_scaling import Dynamic, Linear, Llama3, LongRope, Scaling, Yarn
from martlet.layers.rotary import Rotary
from martlet.models.fields import Fields

__all__ = ["RopeForm", "read_rotary"]

_LARGEST_POSITIONS = 1 << 32


@dataclass(frozen=True)
class RopeForm:
    """What a family turns, and its base where config.json names none.

    ``partial`` is the share of a head's components where config.json does not say; None where the
    family knows no other than all.
    """

    theta: float = 10000.0
    partial: float | None = None
    is_interleaved: bool = False


_PLAIN = RopeForm()


@dataclass(frozen=True)
class _Asked:
    """The settings of one type of layers, and what stands for those that are missing."""

    settings: Fields
    size: int
    max_positions: int
    trained_positions: int


def read_rotary(
    fields: Fields,
    head_dim: int,
    max_position_embeddings: int,
    form: RopeForm = _PLAIN,
    layer_type: str | None = None,
) -> Rotary:
    """The rotation of heads, for one type of layers where the settings have groups.

    Raises:
        ModelFileError: a type of rope or a setting that is not known, or one that is malformed.
    """
    settings = _settings(fields, layer_type)
    theta = settings.positive("rope_theta", fields.positive("rope_theta", form.theta))
    share = 1.0
    if form.partial is not None:
        share = fields.positive("partial_rotary_factor", form.partial)
        share = settings.positive("partial_rotary_factor", share)
    elif settings.has("partial_rotary_factor"):
        settings.require("partial_rotary_factor", 1.0)
    size = int(head_dim * share)
    if size < 2 or size % 2 or size > head_dim:
        raise ModelFileError(
            f"config.json gives a head_dim of {head_dim}, of which positions turn {size} "
            "components; rotary positions need an even number"
        )
    asked = _Asked(settings, size, max_position_embeddings, _trained(fields, settings))
    scaling = _SCALINGS[_rope_type(settings)](asked, theta)
    settings.refuse_unknown()
    return Rotary(size, theta, scaling, form.is_interleaved)


def _settings(fields: Fields, layer_type: str | None) -> Fields:
    """The group of settings, under either name; empty where there is none."""
    new, old = fields.get("rope_parameters"), fields.get("rope_scaling")
    name, settings = ("rope_scaling", old) if old else ("rope_parameters", new)
    if layer_type is not None and isinstance(settings, Mapping) and layer_type in settings:
        settings = settings[layer_type]
    if settings is not None and not isinstance(settings, Mapping):
        raise fields.bad(name, settings, "a group of settings")
    return Fields(settings or {}, f"{name} in {fields.where}")


def _rope_type(settings: Fields) -> str:
    newer, older = (settings.choice(key, "default", _NAMES) for key in ("rope_type", "type"))
    newer, older = (_ALIASES.get(name, name) for name in (newer, older))
    # Some files have both spellings; one that contradicts itself is not guessed at.
    if settings.has("rope_type") and settings.has("type") and newer != older:
        raise settings.bad("type", older, f"the same as its rope_type, {newer}")
    return newer if settings.has("rope_type") else older


def _trained(fields: Fields, settings: Fields) -> int:
    """Positions of training, where scaling has raised those of the model; 0 if nothing says so."""
    name = "original_max_position_embeddings"
    for where in (fields, settings):
        if where.has(name):
            settings.ignore(name)
            return where.size(name)
    return 0


def _linear(asked: _Asked, theta: float) -> Scaling:
    return Linear(stretch=_stretch(asked.settings))


def _dynamic(asked: _Asked, theta: float) -> Scaling:
    if asked.size == 2:
        raise asked.settings.bad("rope_type", "dynamic", "dynamic for heads of two pairs or more")
    return Dynamic(stretch=_stretch(asked.settings), trained_positions=asked.max_positions)


def _yarn(asked: _Asked, theta: float) -> Scaling:
    settings, trained = asked.settings, asked.trained_positions or asked.max_positions
    if theta <= 1:
        raise settings.bad("rope_theta", theta, "a number above 1 for yarn")
    stretch = asked.max_positions / trained
    if settings.has("factor"):
        stretch = _stretch(settings)
    settings.ignore("finetuned")
    return Yarn(
        _yarn_factor(settings, stretch),
        stretch=stretch,
        trained_positions=trained,
        beta_fast=settings.positive("beta_fast", 32.0),
        beta_slow=settings.positive("beta_slow", 1.0),
        is_truncated=settings.flag("truncate", True),
    )


def _yarn_factor(settings: Fields, stretch: float) -> float:
    """What cosine and sine are multiplied by: attention gets sharper as texts get longer."""

    def sharpness(weight: float) -> float:
        return 0.1 * weight * math.log(stretch) + 1.0 if stretch > 1 else 1.0

    factor = sharpness(1.0)
    if settings.has("mscale") and settings.has("mscale_all_dim"):
        above = sharpness(settings.positive("mscale", 1.0))
        factor = above / sharpness(settings.positive("mscale_all_dim", 1.0))
    return settings.positive("attention_factor", factor)


def _longrope(asked: _Asked, theta: float) -> Scaling:
    settings, trained = asked.settings, asked.trained_positions or asked.max_positions
    stretch = settings.positive("factor", asked.max_positions / trained)
    factor = 1.0
    if stretch > 1 and trained > 1:
        factor = math.sqrt(1 + math.log(stretch) / math.log(trained))
    return LongRope(
        settings.positive("attention_factor", factor),
        short=settings.numbers("short_factor", asked.size // 2),
        long=settings.numbers("long_factor", asked.size // 2),
        trained_positions=trained,
    )


def _llama3(asked: _Asked, theta: float) -> Scaling:
    settings = asked.settings
    low, high = (settings.positive(f"{name}_freq_factor") for name in ("low", "high"))
    if low >= high:
        raise settings.bad("high_freq_factor", high, "a number above low_freq_factor")
    return Llama3(
        stretch=_stretch(settings),
        low=low,
        high=high,
        trained_positions=asked.trained_positions or asked.max_positions,
    )


def _stretch(settings: Fields) -> float:
    """A factor that is there."""
    stretch = settings.positive("factor")
    if not 1 <= stretch <= _LARGEST_POSITIONS:
        raise settings.bad("factor", stretch, "a number from 1 on")
    return stretch


_ALIASES = {"su": "longrope"}
_SCALINGS: Mapping[str, Callable[[_Asked, float], Scaling]] = {
    "default": lambda asked, theta: Scaling(),
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
_NAMES = (*_SCALINGS, *_ALIASES)
