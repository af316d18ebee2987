"""A GGUF model of one file or of several, NAME-00001-of-00003.gguf and so on, as one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from martlet.checkpoint.gguf import GGUFHeader, GGUFTensor, Value, read_gguf_header
from martlet.checkpoint.mapped import MappedFile
from martlet.checkpoint.shards import inside_folder
from martlet.errors import ModelFileError

__all__ = ["GGUFModel", "MappedTensor", "find_gguf", "open_gguf"]

_PART = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
_MAX_PARTS = 1000


@dataclass(frozen=True)
class MappedTensor:
    """A tensor and the mapped file in which it lies."""

    entry: GGUFTensor
    file: MappedFile


@dataclass(frozen=True)
class GGUFModel:
    """The keys of the first file and the tensors of all."""

    path: Path
    metadata: dict[str, Value]
    tensors: dict[str, MappedTensor]
    files: tuple[MappedFile, ...]

    def forget(self) -> None:
        """Give back the memory of the pages read so far; views stay valid."""
        for file in self.files:
            file.forget()


def open_gguf(path: Path) -> GGUFModel:
    """A GGUF file, checked, with the other parts of the model where it is the first of several.

    Raises:
        ModelFileError: a file is not sound, a part is missing, or the parts do not fit together.
    """
    first = read_gguf_header(path)
    headers = [first, *_others(first)]
    tensors: dict[str, MappedTensor] = {}
    files = []
    for header in headers:
        file = MappedFile(header.path)
        if file.size_bytes != header.size_bytes:
            raise ModelFileError(f"{header.path}: its size changed while it was opened")
        files.append(file)
        for entry in header.tensors.values():
            if entry.name in tensors:
                raise ModelFileError(f"{path}: two parts of the model hold {entry.name}")
            tensors[entry.name] = MappedTensor(entry, file)
    expected = first.metadata.get("split.tensors.count", len(tensors))
    if len(headers) > 1 and expected != len(tensors):
        raise ModelFileError(
            f"{path}: the parts hold {len(tensors):,} tensors, split.tensors.count says "
            f"{expected!r:.40}; fetch all parts again"
        )
    return GGUFModel(path, first.metadata, tensors, tuple(files))


def _others(first: GGUFHeader) -> list[GGUFHeader]:
    """The heads of the parts that follow the first one."""
    count, number = first.metadata.get("split.count", 0), first.metadata.get("split.no", 0)
    if count in (0, 1):
        return []
    path = first.path
    if type(count) is not int or not 0 < count <= _MAX_PARTS or type(number) is not int:
        raise ModelFileError(
            f"{path}: split.count is {count!r:.40} and split.no {number!r:.40}; at most "
            f"{_MAX_PARTS} parts are possible"
        )
    match = _PART.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise ModelFileError(
            f"{path}: one of {count} parts of a model, which must be named "
            f"NAME-00001-of-{count:05d}.gguf and so on; give the files these names"
        )
    if number != 0 or int(match["number"]) != 1:
        raise ModelFileError(
            f"{path}: part {int(match['number'])} of a model; give the first, "
            f"{match['stem']}-00001-of-{count:05d}.gguf"
        )
    headers = []
    for index in range(1, count):
        name = f"{match['stem']}-{index + 1:05d}-of-{count:05d}.gguf"
        header = read_gguf_header(inside_folder(path.parent, name, named_by=path))
        if (header.metadata.get("split.no"), header.metadata.get("split.count")) != (index, count):
            raise ModelFileError(f"{header.path}: its keys do not say that it is part {index + 1}")
        headers.append(header)
    return headers


def find_gguf(folder: Path) -> Path | None:
    """The GGUF model in a folder, the first file of one in parts; None where there is none.

    Files of an image encoder ("mmproj") beside a language model do not count.

    Raises:
        ModelFileError: there are several, so that one must be chosen.
    """
    names = sorted(path.name for path in folder.glob("*.gguf"))
    models = []
    for name in names:
        match = _PART.fullmatch(name)
        if not name.startswith("mmproj") and (match is None or int(match["number"]) == 1):
            models.append(name)
    if len(models) > 1:
        raise ModelFileError(f"{folder}: holds {', '.join(models[:20])}; give the path of one")
    return folder / models[0] if models else None
