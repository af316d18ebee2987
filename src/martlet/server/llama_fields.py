"""Sampling in the words of llama.cpp, which Ollama took over."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from martlet.server.fields import LARGEST_SEED, LARGEST_TOKENS, Body, Stop

__all__ = ["LlamaSampling"]


class LlamaSampling(Body):
    """The fields that both have; each adds its own for the length of the text."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_k: Annotated[int, Field(ge=0, le=LARGEST_TOKENS)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repeat_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: Stop | None = None
    seed: Annotated[int, Field(ge=-1, le=LARGEST_SEED)] | None = None

    def sampling(self, length: str) -> dict[str, Any]:
        """The sampling parameters that were given; ``length`` is the field for the most tokens.

        A seed or a length below 0 is none: the model takes a new seed, and its usual length.
        """
        names = {"repeat_penalty": "repetition_penalty", length: "max_tokens"}
        params: dict[str, Any] = {}
        for name in (*LlamaSampling.model_fields, length):
            value = getattr(self, name)
            if value is None or (name in ("seed", length) and value < 0):
                continue
            params[names.get(name, name)] = value
        return params
