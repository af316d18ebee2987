"""Checkpoints cut into several files: the index that says which file holds which tensor."""

from __future__ import annotations

import json
from pathlib import Path

from martlet.checkpoint.mapped import file_size_bytes
from martlet.checkpoint.safetensors import MAX_ENTRIES, check_tensor_name, unique_object
from martlet.errors import ModelFileError

__all__ = ["inside_folder", "plain_file_name", "read_json_object", "read_shard_index"]

_MAX_JSON_BYTES = 64 << 20


def plain_file_name(name: object) -> bool:
    """Whether a name from a file is nothing but a file name: no folder, no way up, no surprise."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 255
        and name.isprintable()
        and not any(separator in name for separator in "/\\:")
        and name not in (".", "..")
    )


def read_json_object(path: Path) -> dict[str, object]:
    """A JSON object from a file of bounded size, without duplicate keys.

    Raises:
        ModelFileError: unreadable, larger than 64 MiB, or not a JSON object.
    """
    size_bytes = file_size_bytes(path)
    if size_bytes > _MAX_JSON_BYTES:
        raise ModelFileError(f"{path}: {size_bytes:,} bytes, the limit is {_MAX_JSON_BYTES:,}")
    try:
        value = json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=unique_object)
    except OSError as error:
        raise ModelFileError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelFileError(f"{path}: is not a JSON object")
    return value


def read_shard_index(path: Path) -> dict[str, Path]:
    """Tensor name -> file, from a ``*.index.json`` beside the shards.

    Raises:
        ModelFileError: malformed, or a shard that is missing or outside the folder of the index.
    """
    weight_map = read_json_object(path).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path}: weight_map is missing or empty")
    if len(weight_map) > MAX_ENTRIES:
        raise ModelFileError(f"{path}: {len(weight_map):,} tensors, the limit is {MAX_ENTRIES:,}")
    files: dict[object, Path] = {}
    for tensor, name in weight_map.items():
        if problem := check_tensor_name(tensor):
            raise ModelFileError(f"{path}: {problem}")
        if not isinstance(name, str):
            raise ModelFileError(f"{path}: the shard of {tensor} is not a file name")
        if name not in files:
            files[name] = inside_folder(path.parent, name, named_by=path)
    return {tensor: files[name] for tensor, name in weight_map.items()}


def inside_folder(folder: Path, name: object, *, named_by: Path) -> Path:
    """The path of a file that an untrusted file names, if it really lies in the folder.

    A link may lead out of the folder in one case: the cache of the Hugging Face hub keeps the
    bytes of ``models--NAME/snapshots/REVISION/`` in ``models--NAME/blobs/``.

    Raises:
        ModelFileError: not a plain file name, missing, or a link to somewhere else.
    """
    if not plain_file_name(name):
        raise ModelFileError(f"{named_by}: {name!r:.80} is not a plain file name")
    path = folder / str(name)
    if not path.is_file():
        raise ModelFileError(f"{named_by}: names {name}, which is missing; fetch it too")
    root = folder.resolve()
    allowed = [root]
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        cached = root.parent.parent
        # What several repositories share lies one level up, by the first letters of its hash.
        shared = cached.parent / "blobs" / path.resolve().name[:2]
        allowed += [cached / "blobs", shared]
    if path.resolve().parent not in allowed:
        raise ModelFileError(f"{named_by}: {name} is a link that leads out of the folder")
    return path
