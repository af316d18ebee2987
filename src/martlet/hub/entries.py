"""What the list of models says about each: family, task, form of the weights, size."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from martlet.checkpoint.names import MANIFEST_NAME
from martlet.errors import MartletError, ModelFileError
from martlet.hub.cached import file_names, missing_files
from martlet.hub.selection import gguf_models
from martlet.models.family import TASKS_OF_FAMILY, Task

__all__ = ["ModelEntry", "Origin", "describe_folder", "describe_gguf", "is_gguf", "is_model_folder"]

Origin = Literal["bundled", "local", "hub"]

_GGUF_MAGIC = b"GGUF"
_LONGEST_CONFIG_BYTES = 16 << 20
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
_QUANT_IN_A_NAME = re.compile(r"(?<![a-z0-9])(i?q\d(?:_[a-z0-9]+)*|bf16|f16|f32)", re.IGNORECASE)


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be loaded by name.

    ``problem`` says why it cannot be loaded after all; then the fields from the files are None.
    ``quantize`` of a file that came from elsewhere is that format's own word for it.
    """

    name: str
    path: Path
    origin: Origin
    family: str | None = None
    task: Task | None = None
    quantize: str | None = None
    size_bytes: int | None = None
    problem: str | None = None


def is_gguf(path: Path) -> bool:
    """Whether this is a file in GGUF form, by its name or by its first bytes."""
    try:
        if not path.is_file():
            return False
        if path.suffix.lower() == ".gguf":
            return True
        with path.open("rb") as file:
            return file.read(len(_GGUF_MAGIC)) == _GGUF_MAGIC
    except (OSError, ValueError):  # ValueError: no path at all
        return False


def is_model_folder(path: Path) -> bool:
    """Whether this is a folder of Martlet's own, or one as the hub has them."""
    return (path / MANIFEST_NAME).is_file() or (
        (path / "config.json").is_file() and not missing_files(path, file_names(path))
    )


def describe_folder(name: str, path: Path, origin: Origin) -> ModelEntry:
    """The entry of a model folder of either kind; reads no weights."""
    try:
        if (path / MANIFEST_NAME).is_file():
            return _own_folder(name, path, origin)
        return _hub_folder(name, path, origin)
    except (MartletError, OSError) as error:
        return ModelEntry(name, path, origin, problem=str(error))


def describe_gguf(name: str, files: Sequence[Path], origin: Origin) -> ModelEntry:
    """The entry of a model in GGUF form; its quantisation is what its name says."""
    match = _QUANT_IN_A_NAME.search(gguf_models([file.name for file in files])[0].name)
    return ModelEntry(
        name=name,
        path=files[0],
        origin=origin,
        quantize=None if match is None else match[1].upper(),
        size_bytes=sum(file.stat().st_size for file in files),
    )


def _own_folder(name: str, path: Path, origin: Origin) -> ModelEntry:
    # Imports torch; finding a folder does not need it.
    from martlet.checkpoint.store import open_store

    store = open_store(path)
    if store.family not in TASKS_OF_FAMILY:
        return ModelEntry(name, path, origin, problem=f"{path}: family {store.family} is not known")
    return ModelEntry(
        name=name,
        path=path,
        origin=origin,
        family=store.family,
        task=_best_task(store.family, path),
        quantize=store.quantize,
        size_bytes=sum(entry.size_bytes for entry in store.manifest.files.values()),
    )


def _hub_folder(name: str, path: Path, origin: Origin) -> ModelEntry:
    config = _read_config(path / "config.json")
    model_type = str(config.get("model_type", "")) or None
    task = _best_task(model_type or "", path)
    settings = config.get("quantization_config")
    method = settings.get("quant_method") if isinstance(settings, dict) else None
    return ModelEntry(
        name=name,
        path=path,
        origin=origin,
        family=model_type,
        task=task,
        quantize="none" if method is None else str(method),
        size_bytes=sum(file.stat().st_size for file in path.glob("*.safetensors")),
        problem=None
        if task
        else f"{path}: model_type {model_type!r:.40} of config.json is not supported",
    )


def _best_task(family: str, folder: Path) -> Task | None:
    """A model with a chat template is for chats; None for a family that is not known."""
    tasks = TASKS_OF_FAMILY.get(family)
    if not tasks:
        return None
    if any((folder / name).is_file() for name in _TEMPLATES):
        return "chat"
    settings = folder / "tokenizer_config.json"
    if not settings.is_file():
        return tasks[0]
    return "chat" if _read_config(settings).get("chat_template") else tasks[0]


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LONGEST_CONFIG_BYTES:
        raise ModelFileError(f"{path}: is longer than {_LONGEST_CONFIG_BYTES:,} bytes")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ModelFileError(f"{path}: is not a JSON object")
    return config
