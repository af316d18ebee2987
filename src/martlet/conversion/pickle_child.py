"""Lists the tensors of a torch file without running what is in it.

Run by path as a child process (``python -I pickle_child.py FILE``); it imports the standard library
only. It opens the file, gives up every resource an attacker could use, and unpickles with a closed
list of names, each of which stands for an inert stand-in. The answer is one JSON object on
standard output: {"tensors": [...], "values": {...}} or {"error": "..."}. The parent trusts none
of it.

Two formats: the zip file of torch 1.6 and later, whose entries are stored uncompressed, and the
older stream of five pickles followed by the raw storages.
"""

from __future__ import annotations

import codecs
import collections
import json
import pickle
import resource
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

ADDRESS_SPACE_BYTES = 2 << 30
CPU_SECONDS = 120
MAX_TENSORS = 200_000
MAX_DEPTH = 16
MAX_VISITS = 5_000_000
MAX_PICKLE_BYTES = 256 << 20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
_STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}


class RefusedError(Exception):
    """The file is not one whose tensors can be listed."""


class Inert:
    """Stands for an object that is of no interest: takes anything, does nothing."""

    def __init__(self, *_args: Any, **_named: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


@dataclass(frozen=True)
class StorageType:
    """The class of a storage, named in the stream."""

    dtype: str


@dataclass(frozen=True)
class Storage:
    """A run of elements; ``skip`` elements of the stored run come before it."""

    dtype: str
    key: str
    numel: int
    skip: int = 0


class Tensor:
    """A view of a storage."""

    def __init__(self, storage: Any, offset: Any, shape: Any, stride: Any) -> None:
        if not isinstance(storage, Storage):
            raise RefusedError("a tensor without a storage")
        for numbers in ((offset,), shape, stride):
            if type(numbers) is not tuple or any(type(n) is not int or n < 0 for n in numbers):
                raise RefusedError("a tensor whose shape, stride or offset is not made of sizes")
        if len(shape) != len(stride):
            raise RefusedError("a tensor whose shape and stride differ in length")
        self.storage, self.offset, self.shape, self.stride = storage, offset, shape, stride

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_more: Any) -> Tensor:
    return Tensor(storage, offset, shape, stride)


def _rebuild_parameter(tensor: Any, *_more: Any) -> Any:
    return tensor


def _latin1_bytes(text: Any, encoding: Any = "latin1", *_more: Any) -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        raise RefusedError("_codecs.encode with something other than latin1 text")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], Callable[..., Any] | StorageType]:
    names: dict[tuple[str, str], Callable[..., Any] | StorageType] = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
        ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
        ("torch._utils", "_rebuild_parameter_with_state"): _rebuild_parameter,
        ("torch", "Size"): tuple,
        ("torch", "device"): Inert,
        ("_codecs", "encode"): _latin1_bytes,
        ("argparse", "Namespace"): Inert,
    }
    for module in ("builtins", "__builtin__"):
        for kind in (set, frozenset, bytearray, complex):
            names[(module, kind.__name__)] = kind
    for module in ("torch", "torch.storage", "torch.cuda"):
        for name, dtype in _STORAGE_DTYPES.items():
            names[(module, name)] = StorageType(dtype)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names[(module, "_reconstruct")] = Inert
        names[(module, "scalar")] = Inert
    for name in ("ndarray", "dtype"):
        names[("numpy", name)] = Inert
    for dtype in ITEM_BYTES:
        names[("torch", dtype)] = Inert
    return names


_ALLOWED = _allowed()


class _Unpickler(pickle.Unpickler):
    """Knows the allowed names only; ``item_bytes`` says of each storage what an element takes."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream, encoding="utf-8")
        self.item_bytes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[(module, name)]
        except KeyError:
            raise RefusedError(
                f"the pickle asks for {module}.{name}, which no weight needs"
            ) from None

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage":
            raise RefusedError("a persistent id that is not a storage")
        kind, key, numel = pid[1], pid[2], pid[4]
        if not isinstance(kind, StorageType) or type(key) is not str or type(numel) is not int:
            raise RefusedError("a storage of an unknown kind")
        skip = 0
        if len(pid) > 5 and pid[5] is not None:
            # Files of torch before 0.4 cut one storage into views: (key, offset, size).
            view = pid[5]
            if type(view) is not tuple or [type(part) for part in view[1:]] != [int, int]:
                raise RefusedError("a view of a storage that is not (key, offset, size)")
            skip, numel = view[1:]
        if numel < 0 or skip < 0:
            raise RefusedError("a storage of negative size")
        self.item_bytes[key] = ITEM_BYTES[kind.dtype]
        return Storage(kind.dtype, key, numel, skip)


def main(path: str) -> int:
    """Print the index of one file; 0 if it could be made."""
    for encoding in ("ascii", "cp437", "latin-1", "utf-8"):
        codecs.lookup(encoding)  # its module is a file, and soon no file can be opened
    with open(path, "rb") as file:
        _give_up_resources(file.fileno())
        try:
            answer = index(file)
            status = 0
        except RefusedError as error:
            answer, status = {"error": str(error)}, 1
        except MemoryError:
            answer, status = {"error": "listing its tensors takes too much memory"}, 1
        except Exception as error:  # whatever a broken pickle makes the interpreter raise
            answer, status = {"error": f"not a sound pickle: {type(error).__name__}: {error}"}, 1
    sys.stdout.write(json.dumps(answer))
    return status


def _give_up_resources(last_descriptor: int) -> None:
    """No more memory than needed, no file written or opened, no socket, no process."""
    limits = (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, last_descriptor + 1),
    )
    for limit, value in limits:
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def index(file: BinaryIO) -> dict[str, Any]:
    """Tensors and plain values of a file of either format."""
    start = file.read(4)
    file.seek(0)
    if start == b"PK\x03\x04":
        root, places = _read_zip(file)
    else:
        root, places = _read_legacy(file)
    walk = _Walk(places)
    walk.visit(root, ())
    values: dict[str, Any] = {}
    if isinstance(root, dict):
        for key, value in root.items():
            if isinstance(key, str) and (value is None or type(value) in (bool, int, float, str)):
                values[key] = value if type(value) is not str else value[:1000]
    return {"tensors": walk.tensors, "values": values}


class _Walk:
    """Goes through an unpickled object and lists the tensors in it."""

    def __init__(self, places: dict[str, int]) -> None:
        self.tensors: list[dict[str, Any]] = []
        self._places = places
        self._visits = 0

    def visit(self, value: Any, keys: tuple[str, ...]) -> None:
        self._visits += 1
        if self._visits > MAX_VISITS:
            raise RefusedError(f"more than {MAX_VISITS:,} objects, counted as often as they occur")
        if isinstance(value, Tensor):
            self._add(value, keys)
            return
        if not isinstance(value, dict | list | tuple):
            return
        if len(keys) >= MAX_DEPTH:
            raise RefusedError(f"objects nested more than {MAX_DEPTH} deep")
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            self.visit(item, (*keys, str(key)))

    def _add(self, tensor: Tensor, keys: tuple[str, ...]) -> None:
        if len(self.tensors) >= MAX_TENSORS:
            raise RefusedError(f"more than {MAX_TENSORS:,} tensors")
        storage = tensor.storage
        if storage.key not in self._places:
            raise RefusedError(f"storage {storage.key!r:.40} is named but not in the file")
        item_bytes = ITEM_BYTES[storage.dtype]
        start = self._places[storage.key] + storage.skip * item_bytes
        self.tensors.append(
            {
                "keys": list(keys),
                "dtype": storage.dtype,
                "shape": list(tensor.shape),
                "stride": list(tensor.stride),
                "offset": start + tensor.offset * item_bytes,
                "end": start + storage.numel * item_bytes,
            }
        )


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, int]]:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if len(members) > MAX_TENSORS:
            raise RefusedError(f"{len(members):,} zip entries, the limit is {MAX_TENSORS:,}")
        pickles = [m for m in members if m.filename.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise RefusedError("a zip file without one data.pkl: not a torch checkpoint")
        main_member = pickles[0]
        folder = main_member.filename.removesuffix("data.pkl")
        if main_member.file_size > MAX_PICKLE_BYTES:
            raise RefusedError(f"data.pkl of {main_member.file_size:,} bytes")
        places: dict[str, int] = {}
        for member in members:
            if member.filename == folder + "byteorder" and archive.read(member) != b"little":
                raise RefusedError("the numbers are stored big-endian")
            if member.filename.startswith(folder + "data/"):
                if member.compress_type != zipfile.ZIP_STORED:
                    raise RefusedError(f"{member.filename} is compressed")
                places[member.filename.removeprefix(folder + "data/")] = _data_offset(file, member)
        with archive.open(main_member) as stream:
            root = _Unpickler(stream).load()
    return root, places


def _data_offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    file.seek(member.header_offset)
    header = file.read(30)
    if len(header) != 30 or header[:4] != b"PK\x03\x04":
        raise RefusedError(f"{member.filename} has no local header")
    name_bytes = int.from_bytes(header[26:28], "little")
    extra_bytes = int.from_bytes(header[28:30], "little")
    return member.header_offset + 30 + name_bytes + extra_bytes


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, int]]:
    if _load(file) != _LEGACY_MAGIC:
        raise RefusedError("neither a zip file nor an older torch file")
    if _load(file) != _LEGACY_PROTOCOL:
        raise RefusedError("an unknown protocol version")
    system = _load(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedError("the numbers are stored big-endian")
    loader = _Unpickler(file)
    root = loader.load()
    sizes = loader.item_bytes
    keys = _load(file)
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise RefusedError("the list of storages is not a list of keys")
    places: dict[str, int] = {}
    position = file.tell()
    for key in keys:
        file.seek(position)
        count = file.read(8)
        if len(count) != 8 or key not in sizes:
            raise RefusedError("the file ends before its storages, or holds one that nothing names")
        numel = int.from_bytes(count, "little", signed=True)
        if numel < 0:
            raise RefusedError("a storage of negative size")
        places[key] = position + 8
        position += 8 + numel * sizes[key]
    return root, places


def _load(file: BinaryIO) -> Any:
    return _Unpickler(file).load()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
