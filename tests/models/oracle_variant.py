"""What is compared with transformers: a family, a variant of it, and the sizes of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["DIVISIBLE", "GROUPED", "MODERN", "Family", "Options", "Variant", "longrope", "rope"]

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """A model_type: transformers' classes for it, and what all its variants begin with.

    ``embedding_scale`` is what the model multiplies embeddings by, so that the random ones are
    made that much smaller. ``norm_center`` is where the weights of norms lie: 0 where the file
    keeps their difference to 1. ``divisible`` are sizes whose matrices the int8 kernels take.
    ``renamed`` gives the config.json that the model has in its makers' words, where transformers
    has the arithmetic under another name.
    """

    config: str
    model: str
    sizes: Options
    divisible: Options
    embedding_scale: float = 1.0
    norm_center: float = 1.0
    renamed: Callable[[dict[str, Any]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class Variant:
    """One configuration; ``long_tokens`` asks for a text of that length besides the short ones.

    ``words`` stand in the table.
    """

    family: str
    words: str
    options: Options = field(default_factory=dict)
    long_tokens: int | None = None

    @property
    def id(self) -> str:
        """A name for the test."""
        return f"{self.family}-{self.words.replace(' ', '-')}"


MODERN = {
    "vocab_size": 101,
    "hidden_size": 48,
    "intermediate_size": 77,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 1600,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
GROUPED = {**MODERN, "num_key_value_heads": 2}
DIVISIBLE = {"hidden_size": 96, "intermediate_size": 160}


def rope(rope_type: str, **settings: Any) -> Options:
    return {"rope_parameters": {"rope_type": rope_type, "rope_theta": 500.0, **settings}}


def longrope(original: int, num_pairs: int, **settings: Any) -> Options:
    """Long factors are in force where a text or its cache is longer than ``original``."""
    factors = {
        "short_factor": [1.0 + 0.1 * pair for pair in range(num_pairs)],
        "long_factor": [2.0 + 1.5 * pair for pair in range(num_pairs)],
        "original_max_position_embeddings": original,
    }
    return {
        **rope("longrope", **factors, **settings),
        "original_max_position_embeddings": original,
    }
