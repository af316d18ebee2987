"""Models that are in the hub's cache already, whoever fetched them; opens no connection."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from martlet.errors import ModelNotFoundError
from martlet.hub.cache import CachedRepo
from martlet.hub.hub_id import HubId
from martlet.hub.selection import (
    INDEX_NAME,
    WEIGHTS_NAME,
    choose_gguf,
    gguf_models,
)

__all__ = ["file_names", "find_cached", "missing_files"]

_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_LONGEST_INDEX_BYTES = 64 << 20


def find_cached(cache_dir: Path, hub_id: HubId, *, needs_tokenizer: bool) -> Path | None:
    """The folder or GGUF file of a model that is whole in the cache, None where it is not.

    ``needs_tokenizer`` also asks for the files of a tokenizer, which some programs fetch later.
    """
    repo = CachedRepo(cache_dir, hub_id.repo)
    commit = repo.commit_of(hub_id.revision)
    if commit is None:
        return None
    folder = repo.snapshot(commit)
    names = file_names(folder)
    models = gguf_models(names)
    has_weights = not missing_files(folder, names)
    if hub_id.wanted is not None or (models and not has_weights):
        return _cached_gguf(folder, names, hub_id)
    if not has_weights or (needs_tokenizer and not any(name in names for name in _TOKENIZERS)):
        return None
    return folder


def missing_files(folder: Path, names: Sequence[str]) -> list[str]:
    """What a folder of safetensors lacks, as far as its own index tells."""
    missing = [] if "config.json" in names else ["config.json"]
    if INDEX_NAME in names:
        return missing + [name for name in _shards(folder / INDEX_NAME) if name not in names]
    return missing if WEIGHTS_NAME in names else [*missing, WEIGHTS_NAME]


def file_names(folder: Path) -> list[str]:
    """The paths of all files in a folder of the cache whose bytes are there."""
    names = []
    for root, _, files in os.walk(folder):
        for file in files:
            path = Path(root) / file
            if path.is_file():  # a link whose blob is gone is none
                names.append(path.relative_to(folder).as_posix())
    return sorted(names)


def _cached_gguf(folder: Path, names: Sequence[str], hub_id: HubId) -> Path | None:
    """Of several that are here the choice is that of the hub's files: see ``choose_gguf``."""
    try:
        return folder / choose_gguf(gguf_models(names), hub_id).files[0]
    except ModelNotFoundError:
        return None


def _shards(index: Path) -> list[str]:
    """The files that an index names; a damaged index names one that cannot be there."""
    try:
        if index.stat().st_size > _LONGEST_INDEX_BYTES:
            return [f"{index.name} of a sound size"]
        weight_map = json.loads(index.read_bytes())["weight_map"]
        return sorted({str(name) for name in weight_map.values()})
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return [f"a sound {index.name}"]
