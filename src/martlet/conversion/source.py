"""What a foreign checkpoint looks like once it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from martlet.quantization.formats import WeightFormat
from martlet.quantization.scheme import StoredWeight

__all__ = ["DirectSource", "Source", "StoredForm", "TokenizerFiles"]


@dataclass(frozen=True)
class StoredForm:
    """What the numbers of a tensor are at the source: a float type, or a format of integers.

    ``scale_dtype`` is that of int8 rows; the scales of groups are float16 always.
    """

    form: WeightFormat | torch.dtype
    scale_dtype: torch.dtype = torch.float32


@dataclass(frozen=True)
class TokenizerFiles:
    """Which tokenizer class reads which files: {name in our folder: file at the source}.

    ``kind`` is "cpm1", "cpm2", "cpm2-bilingual", "eva" or "huggingface".
    """

    kind: str
    files: Mapping[str, Path]


class Source(Protocol):
    """A foreign checkpoint: its configuration in our words, and its tensors under our names.

    ``family`` is one of ``models/family.py`` and decides prompt formats.
    ``config`` is our config.json: Hugging Face's field names for that architecture.
    ``generation`` holds sampling defaults (generation_config.json), ``tokenizer`` is None where
    the source has no vocabulary beside it. ``compression`` says how its integers came to be, as far
    as the source tells.
    """

    format_name: str
    family: str
    config: dict[str, Any]
    generation: dict[str, Any]
    tokenizer: TokenizerFiles | None
    compression: dict[str, Any]

    def stored_as(self, name: str) -> StoredForm:
        """What the numbers of a tensor are, as ``tensor`` will return them; reads no data.

        Raises:
            ModelFileError: the source has no such tensor.
        """
        ...

    def tensor(self, name: str) -> StoredWeight:
        """The tensor of that name in our model folder, merged, cut and turned as our layout has it.

        Linear weights come as (out_features, in_features). A source of integers gives a
        QuantizedTensor or a GroupedTensor. The caller drops it before it asks for the next one,
        because a source may give back the memory behind it then.

        Raises:
            ModelFileError: the source has no such tensor, or it has the wrong shape or type.
        """
        ...


class DirectSource(Source, Protocol):
    """A source that a model can be run from as it is, without a model folder being made of it."""

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor as ``tensor`` will return it; reads no data.

        Raises:
            ModelFileError: the source has no such tensor.
        """
        ...

    def forget(self) -> None:
        """Give back the memory of all pages touched so far; tensors stay valid."""
        ...
