"""martlet.json, the manifest of a model folder: what the weights are and where each block lies."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from martlet.checkpoint.json_check import JsonCheck
from martlet.checkpoint.names import MANIFEST_NAME
from martlet.checkpoint.safetensors import MAX_ENTRIES, check_tensor_name
from martlet.checkpoint.shards import read_json_object
from martlet.errors import ModelFileError
from martlet.quantization.formats import WeightFormat, parse_format

__all__ = [
    "FORMAT_VERSION",
    "MANIFEST_NAME",
    "BlockEntry",
    "FileEntry",
    "FormatEntry",
    "Manifest",
    "TokenizerEntry",
    "is_family_name",
    "read_manifest",
]

FORMAT_VERSION = 2
"""The newest that is read. Written is 1 unless there are groups, so that older readers can read."""
_FAMILY = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_QUANTIZE = ("none", "int8", "int4")
_MAX_BLOCKS = 10_000
_MAX_SIDE = 1 << 31
_MAX_DEPTH = 20  # of what is shown to people as it is


@dataclass(frozen=True)
class TokenizerEntry:
    """The kind of tokenizer and the files in the folder that it reads."""

    kind: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class BlockEntry:
    """One block: a contiguous range of one file.

    ``tensors`` are names as in the file, in file order, scales included.

    Units:
        offset: bytes from the start of the file.
    """

    name: str
    prefix: str
    file: str
    offset: int
    nbytes: int
    tensors: tuple[str, ...]


@dataclass(frozen=True)
class FileEntry:
    """Size and digest of a file of the folder."""

    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class FormatEntry:
    """The format of a matrix of integers with groups, and its shape (out_features, in_features)."""

    format: WeightFormat
    shape: tuple[int, int]


@dataclass(frozen=True)
class Manifest:
    """The whole manifest, checked.

    ``formats`` has the matrices with groups by their names in the file; all others tell by
    themselves what they are. ``compression`` says how the weights came to be, in no fixed fields.
    """

    family: str
    quantize: str
    tokenizer: TokenizerEntry | None
    blocks: tuple[BlockEntry, ...]
    files: Mapping[str, FileEntry]
    formats: Mapping[str, FormatEntry] = field(default_factory=dict)
    compression: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The object that martlet.json holds."""
        formats = {
            name: {"format": entry.format.name, "shape": list(entry.shape)}
            for name, entry in self.formats.items()
        }
        return {
            "format_version": 2 if formats else 1,
            "family": self.family,
            "quantize": self.quantize,
            "tokenizer": None if self.tokenizer is None else asdict(self.tokenizer),
            "blocks": [asdict(block) for block in self.blocks],
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            **({"formats": formats} if formats else {}),
            **({"compression": dict(self.compression)} if self.compression else {}),
        }


def is_family_name(name: str) -> bool:
    """Whether a name may be that of a family: small letters, digits, - and _, 40 at most."""
    return _FAMILY.fullmatch(name) is not None


def read_manifest(path: Path) -> Manifest:
    """The checked manifest at a path.

    Raises:
        ModelFileError: unreadable, malformed, or written by a newer format.
    """
    raw = read_json_object(path)
    version = raw.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise ModelFileError(
            f"{path}: format_version is {version!r:.40}, this Martlet reads 1 to {FORMAT_VERSION}; "
            f"if it is higher, a newer Martlet wrote the folder"
        )
    check = JsonCheck(path)
    manifest = Manifest(
        family=_family(check, raw),
        quantize=check.choice(raw, "quantize", _QUANTIZE),
        tokenizer=_tokenizer(check, raw.get("tokenizer")),
        blocks=tuple(_block(check, item) for item in check.items(raw, "blocks", _MAX_BLOCKS)),
        files=_files(check, raw.get("files")),
        formats=_formats(check, raw.get("formats", {})),
        compression=_compression(check, raw.get("compression", {})),
    )
    _check_formats(check, manifest, version)
    _check_names(check, manifest)
    return manifest


def _family(check: JsonCheck, raw: dict[str, object]) -> str:
    """A plain name; whether a family is known is for those to say who compute it."""
    value = raw.get("family")
    if not isinstance(value, str) or not is_family_name(value):
        raise check.fail(f"family is {value!r:.60}, not a name of small letters and digits")
    return value


def _tokenizer(check: JsonCheck, value: object) -> TokenizerEntry | None:
    if value is None:
        return None
    raw = check.mapping(value, "tokenizer")
    files = tuple(check.file_name(name) for name in check.items(raw, "files", 100))
    return TokenizerEntry(kind=check.text(raw, "kind"), files=files)


def _block(check: JsonCheck, value: object) -> BlockEntry:
    raw = check.mapping(value, "a block")
    tensors = []
    for name in check.items(raw, "tensors", MAX_ENTRIES):
        if not isinstance(name, str) or check_tensor_name(name):
            raise check.fail(f"{name!r:.40} is not a tensor name")
        tensors.append(name)
    return BlockEntry(
        name=check.text(raw, "name"),
        prefix=check.text(raw, "prefix"),
        file=check.file_name(raw.get("file")),
        offset=check.size(raw, "offset"),
        nbytes=check.size(raw, "nbytes"),
        tensors=tuple(tensors),
    )


def _files(check: JsonCheck, value: object) -> dict[str, FileEntry]:
    files = {}
    for name, entry in check.mapping(value, "files").items():
        raw = check.mapping(entry, f"files entry {name!r:.40}")
        digest = raw.get("sha256")
        if not isinstance(digest, str) or len(digest) != 64 or not digest.isalnum():
            raise check.fail(f"the sha256 of {name!r:.40} is {digest!r:.80}")
        files[check.file_name(name)] = FileEntry(check.size(raw, "size_bytes"), digest)
    return files


def _formats(check: JsonCheck, value: object) -> dict[str, FormatEntry]:
    formats = {}
    for name, entry in check.mapping(value, "formats").items():
        raw = check.mapping(entry, f"formats entry {name!r:.40}")
        text, shape = raw.get("format"), raw.get("shape")
        format = parse_format(text) if isinstance(text, str) else None
        # A name has one spelling here: "int4" alone is for people.
        if format is None or format.name != text or format.group_size is None:
            raise check.fail(
                f"the format of {name!r:.80} is {text!r:.40}, "
                f"expected int4-gN, int4-gN-asym or int8-gN with N 32, 64 or 128"
            )
        if (
            not isinstance(shape, list)
            or len(shape) != 2
            or not all(type(side) is int and 0 < side <= _MAX_SIDE for side in shape)
        ):
            raise check.fail(f"the shape of {name!r:.80} is {shape!r:.40}, not two sizes")
        formats[name] = FormatEntry(format, (shape[0], shape[1]))
    return formats


def _compression(check: JsonCheck, value: object) -> dict[str, object]:
    account = check.mapping(value, "compression")
    if _is_deeper(account, _MAX_DEPTH):
        raise check.fail(f"compression is nested more than {_MAX_DEPTH} deep")
    try:
        # It is written again when the folder is converted: no NaN, and text that UTF-8 can hold.
        json.dumps(account, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise check.fail(f"compression is not plain JSON: {error}") from error
    return account


def _is_deeper(value: object, levels: int) -> bool:
    """Whether lists and objects stand inside each other more than so many levels deep."""
    if not isinstance(value, (dict, list)):
        return False
    items = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(item, levels - 1) for item in items)


def _check_formats(check: JsonCheck, manifest: Manifest, version: int) -> None:
    if manifest.formats and version == 1:
        raise check.fail("has formats, which format_version 1 does not know")
    listed = {name for block in manifest.blocks for name in block.tensors}
    if missing := manifest.formats.keys() - listed:
        raise check.fail(f"formats names {min(missing)!r:.80}, which is in no block")
    bits = {entry.format.bits for entry in manifest.formats.values()}
    allowed = (f"int{min(bits)}",) if bits else ("none", "int8")
    if manifest.quantize not in allowed:
        raise check.fail(
            f"quantize is {manifest.quantize}, but by formats it would be {' or '.join(allowed)}"
        )


def _check_names(check: JsonCheck, manifest: Manifest) -> None:
    names = [block.name for block in manifest.blocks]
    if not names or len(set(names)) != len(names) or not all(names):
        raise check.fail("blocks are missing, have no name or have the same name twice")
    named = {block.file for block in manifest.blocks} | {"config.json"}
    if manifest.tokenizer is not None:
        named.update(manifest.tokenizer.files)
    if missing := sorted(named - manifest.files.keys()):
        raise check.fail(f"files does not list {', '.join(missing)}")
    for block in manifest.blocks:
        for name in block.tensors:
            if not name.startswith(block.prefix):
                raise check.fail(f"{name} is in block {block.name} without its prefix")
