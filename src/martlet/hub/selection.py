"""Which files of a repository a model needs: weights without code, and what reads the text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from martlet.errors import ModelFileError, ModelNotFoundError
from martlet.hub.hub_id import HubId

__all__ = [
    "INDEX_NAME",
    "WEIGHTS_NAME",
    "GgufModel",
    "Selection",
    "choose_gguf",
    "gguf_models",
    "select_files",
]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_SMALL_FILES = frozenset(
    {
        "config.json",
        "generation_config.json",
        "quantize_config.json",
        "quant_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "spiece.model",
        "sentencepiece.model",
        "sentencepiece.bpe.model",
        "chat_template.jinja",
        "chat_template.json",
        "README.md",
        "LICENSE",
        "LICENSE.md",
        "LICENSE.txt",
        "NOTICE",
    }
)
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")
_GGUF_PART = re.compile(r"(?P<stem>.+)-(?P<part>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
_PREFERRED_QUANTS = ("Q4_K_M", "Q8_0")
# Beside models: projectors of images, and what quantising was calibrated with.
_NO_MODEL = ("mmproj", "imatrix")
_MOST_NAMES_IN_A_MESSAGE = 12


@dataclass(frozen=True)
class GgufModel:
    """A model in GGUF form: one file, or parts that belong together, the first one first."""

    files: tuple[str, ...]

    @property
    def name(self) -> str:
        """The name without ".gguf" and the number of the part."""
        match = _GGUF_PART.fullmatch(self.files[0])
        return match["stem"] if match else self.files[0][: -len(".gguf")]

    def is_whole(self) -> bool:
        """Whether all its parts are there."""
        match = _GGUF_PART.fullmatch(self.files[0])
        return match is None or int(match["count"]) == len(self.files)


@dataclass(frozen=True)
class Selection:
    """What is fetched of a repository.

    Attributes:
        files: names of all files, small ones first, so that weights mean that the rest is there.
        left_out: names of the others.
        gguf: the model in GGUF form that was chosen, None for a folder of safetensors.
    """

    files: tuple[str, ...]
    left_out: tuple[str, ...]
    gguf: GgufModel | None = None


def select_files(names: Sequence[str], hub_id: HubId) -> Selection:
    """The files to fetch of those that a repository has.

    Safetensors come before GGUF where there are both and the id does not ask for one of the latter.

    Raises:
        ModelNotFoundError: the GGUF file that the id asks for is not there, or not one alone.
        ModelFileError: nothing that Martlet loads, pickles only for instance.
    """
    weights = _safetensors(names)
    models = gguf_models(names)
    gguf = None
    if hub_id.wanted is not None or (models and not weights):
        gguf = choose_gguf(models, hub_id)
        chosen = list(gguf.files)
    elif weights and "config.json" in names:
        small = sorted(name for name in names if name in _SMALL_FILES or name == INDEX_NAME)
        chosen = small + weights
    else:
        raise _nothing_to_load(names, hub_id)
    left_out = sorted(set(names) - set(chosen))
    return Selection(tuple(chosen), tuple(left_out), gguf)


def gguf_models(names: Sequence[str]) -> list[GgufModel]:
    """The models in GGUF form among these files, by name."""
    parts: dict[str, list[str]] = {}
    for name in sorted(names):
        file = PurePosixPath(name).name.lower()
        if file.endswith(".gguf") and not any(word in file for word in _NO_MODEL):
            match = _GGUF_PART.fullmatch(name)
            key = f"{match['stem']}-of-{match['count']}" if match else name
            parts.setdefault(key, []).append(name)
    return [GgufModel(tuple(files)) for files in parts.values()]


def choose_gguf(models: Sequence[GgufModel], hub_id: HubId) -> GgufModel:
    """The one that the id asks for; else Q4_K_M, else Q8_0, else the only one.

    Raises:
        ModelNotFoundError: none, or several; lists what there is.
    """
    if hub_id.wanted is not None:
        found = _matching(models, hub_id.wanted)
        problem = f"for {hub_id.wanted!r}"
    else:
        found = next((f for q in _PREFERRED_QUANTS if (f := _matching(models, q))), list(models))
        problem = "and none of them is the obvious one"
    whole = [model for model in found if model.is_whole()]
    if len(whole) == 1:
        return whole[0]
    if found and not whole:
        problem = f"but parts of {found[0].name} are missing"
    count = "no" if not found else str(len(found))
    names = [model.name for model in (found if len(found) > 1 else models)]
    raise ModelNotFoundError(
        f"{hub_id.repo} has {count} GGUF model{'' if len(found) == 1 else 's'} {problem}: "
        f"{_listed(names) or 'there is no GGUF file'}; "
        f"write {hub_id.repo}:NAME with one of these, or :Q4_K_M or the like where that is one"
    )


def _matching(models: Sequence[GgufModel], wanted: str) -> list[GgufModel]:
    """By a whole name, else by a word of it such as Q4_K_M; upper and lower case are alike."""
    wanted = wanted.lower()
    exact = [
        model
        for model in models
        if wanted in (model.name.lower(), *(name.lower() for name in model.files))
        or wanted in (PurePosixPath(name).name.lower() for name in model.files)
    ]
    if exact:
        return exact
    # "Q4_K" is no word of "Q4_K_M".
    word = re.compile(rf"(?<![a-z0-9_]){re.escape(wanted)}(?![a-z0-9_])")
    return [model for model in models if word.search(model.name.lower())]


def _safetensors(names: Sequence[str]) -> list[str]:
    """The files of weights in the form that transformers loads."""
    shards = sorted(name for name in names if _SHARD.fullmatch(name))
    if INDEX_NAME in names and shards:
        return shards
    return [WEIGHTS_NAME] if WEIGHTS_NAME in names else []


def _nothing_to_load(names: Sequence[str], hub_id: HubId) -> ModelFileError:
    if any(name.endswith(_PICKLES) for name in names):
        return ModelFileError(
            f"{hub_id.repo} has its weights only as pickles or other files that Martlet does not "
            "fetch, since they can hold code; look for a revision or a repository with "
            "safetensors or GGUF, or fetch it yourself with "
            f"`hf download {hub_id.repo} --local-dir FOLDER` and run martlet convert FOLDER NAME"
        )
    missing = "config.json" if _safetensors(names) else f"{WEIGHTS_NAME}, no shards and no GGUF"
    return ModelFileError(
        f"{hub_id.repo} is no language model that Martlet loads: it has no {missing}, only "
        f"{_listed(names) or 'nothing'}; name a repository with config.json and safetensors, "
        "or with GGUF"
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MOST_NAMES_IN_A_MESSAGE])
    more = len(names) - _MOST_NAMES_IN_A_MESSAGE
    return shown + (f" and {more} more" if more > 0 else "")
