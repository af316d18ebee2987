import math
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from martlet.checkpoint.gguf import read_gguf_header
from martlet.checkpoint.gguf_parts import open_gguf
from martlet.errors import ModelFileError

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def u32(name: str, value: int) -> bytes:
    return key(name, U32, struct.pack("<I", value))


def array(name: str, kind: int, count: int, value: bytes) -> bytes:
    return key(name, ARRAY, struct.pack("<IQ", kind, count) + value)


def tensor(
    name: str | bytes = "a.weight",
    sizes: tuple[int, ...] = (32, 2),
    kind: int = 0,
    offset: int = 0,
    axes: int | None = None,
) -> bytes:
    head = text(name) + struct.pack("<I", len(sizes) if axes is None else axes)
    return head + struct.pack(f"<{len(sizes)}QIQ", *sizes, kind, offset)


def build(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: bytes = bytes(256),
    *,
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    keys = [u32("k", 7)] if keys is None else keys
    tensors = [tensor()] if tensors is None else tensors
    head = b"GGUF" + struct.pack(
        "<IQQ",
        version,
        len(tensors) if num_tensors is None else num_tensors,
        len(keys) if num_keys is None else num_keys,
    )
    head += b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data


GOOD_KEYS = [
    u32("general.alignment", 64),
    key("name", STRING, text("ein Märtlet")),
    key("flag", BOOL, b"\1"),
    key("rate", F32, struct.pack("<f", 0.5)),
    array("words", STRING, 3, text("a") + text("") + text("猫")),
    array("numbers", I32, 2, struct.pack("<2i", -1, 5)),
    array("flags", BOOL, 2, b"\0\1"),
]
GOOD_TENSORS = [
    tensor("a.weight", (32, 2), 0, 0),
    tensor("b.weight", (64, 3), 8, 256),
    tensor("c", (1,), 1, 512),
]
GOOD = build(GOOD_KEYS, GOOD_TENSORS, bytes(514), alignment=64)
BIG = 2**64 - 1


def refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=reason) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert str(path) in message and "\n" not in message and len(message) < 600


def test_the_file_that_the_lies_are_made_from_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for content in (GOOD, GOOD[:4] + struct.pack("<I", 2) + GOOD[8:]):
        path.write_bytes(content)
        header = read_gguf_header(path)
        assert header.metadata == {
            "general.alignment": 64,
            "name": "ein Märtlet",
            "flag": True,
            "rate": 0.5,
            "words": ["a", "", "猫"],
            "numbers": [-1, 5],
            "flags": [False, True],
        }
        start = header.data_offset
        assert start % 64 == 0
        found = {
            t.name: (t.type.name, t.shape, t.offset, t.nbytes) for t in header.tensors.values()
        }
        assert found == {
            "a.weight": ("F32", (2, 32), start, 256),
            "b.weight": ("Q8_0", (3, 64), start + 256, 204),
            "c": ("F16", (1,), start + 512, 2),
        }


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "beyond the end"),
        (b"GGU", "beyond the end"),
        (b"FUGG" + GOOD[4:], "begins with b'FUGG'"),
        (b"tjgg" + GOOD[4:], "before GGUF"),
        (build(version=0), "version 0"),
        (build(version=1), "version 1"),
        (build(version=4), "version 4"),
        (GOOD[:4] + struct.pack(">I", 3) + GOOD[8:], "big-endian"),
        (build(num_tensors=BIG), "tensors, at most"),
        (build(num_keys=BIG), "keys, at most"),
        (build(num_keys=200), "keys, at most"),
        (build(num_keys=10), "beyond the end|type|name of key|claims"),
        (build([struct.pack("<Q", BIG) + b"k"]), "name of key 0 claims"),
        (build([u32("", 1)]), "has the name ''"),
        (build([u32("a\nb", 1)]), "has the name"),
        (build([key(b"\xff", U32, bytes(4))]), "not UTF-8"),
        (build([key("k", 13, bytes(4))]), "value of type 13"),
        (build([key("k", 2**32 - 1, bytes(4))]), "value of type"),
        (build([array("k", 13, 1, bytes(8))]), "value of type 13"),
        (build([array("k", ARRAY, 1, struct.pack("<IQ", U8, 1) + b"x")]), "array of arrays"),
        (build([array("k", U8, BIG, b"")]), "elements; the limits"),
        (build([array("k", U64, 1 << 20, b"")]), "beyond the end"),
        (build([array("k", STRING, 1 << 20, b"")]), "beyond the end"),
        (build([array("k", STRING, 2, text("a") + struct.pack("<Q", BIG))]), "beyond the end"),
        (build([array("k", STRING, 1, text(b"\xc3"))]), "not UTF-8"),
        (build([array(f"k{i}", U8, 1 << 20, bytes(1 << 20)) for i in range(3)]), "for all"),
        (build([key("k", STRING, struct.pack("<Q", BIG))]), "k claims"),
        (build([key("k", BOOL, b"\2")]), "bool of value 2"),
        (build([u32("k", 1), u32("k", 1)]), "key k occurs twice"),
        (build([u32("general.alignment", 0)]), "general.alignment is 0"),
        (build([u32("general.alignment", 13)]), "general.alignment is 13"),
        (build([u32("general.alignment", 1 << 21)]), "general.alignment is"),
        (build([key("general.alignment", F32, struct.pack("<f", 32))]), "alignment is 32.0"),
        (build([key("general.alignment", BOOL, b"\1")]), "alignment is True"),
        (build(tensors=[tensor("x" * 65)]), "claims 65 bytes, the limit is 64"),
        (build(tensors=[tensor("")]), "empty tensor name"),
        (build(tensors=[tensor("a\0")]), "unprintable"),
        (build(tensors=[tensor(axes=0)]), "0 axes"),
        (build(tensors=[tensor(sizes=(1,) * 5)]), "5 axes"),
        (build(tensors=[tensor(axes=2**32 - 1)]), "axes"),
        (build(tensors=[tensor(sizes=(BIG, 1))]), "elements"),
        (build(tensors=[tensor(sizes=(2**31, 2**31))]), "elements"),
        (build(tensors=[tensor(sizes=(2**32, 2**32, 0))]), "elements"),
        (build(tensors=[tensor(sizes=(2**59,))]), "it is truncated"),
        (build(tensors=[tensor(sizes=(33, 2), kind=8)]), "multiple of 32"),
        (build(tensors=[tensor(kind=4)]), "type 4, which is not known"),
        (build(tensors=[tensor(kind=2**32 - 1)]), "which is not known"),
        (build(tensors=[tensor(offset=16)]), "no multiple of 32"),
        (build(tensors=[tensor(offset=32)]), "it is truncated"),
        (build(tensors=[tensor(offset=BIG - 31)]), "it is truncated"),
        (build(tensors=[tensor("a"), tensor("a", offset=256)], data=bytes(512)), "a occurs twice"),
        (build(tensors=[tensor("a"), tensor("b", offset=224)], data=bytes(512)), "inside the"),
        (build(tensors=[tensor("a"), tensor("b")]), "inside the tensor before it"),
        (build(GOOD_KEYS, GOOD_TENSORS, bytes(514)), "truncated|multiple"),
        (build(data=bytes(255)), "it is truncated"),
        (build(tensors=[tensor(sizes=(2**60,), kind=8)]), "it is truncated"),
        (build([u32("split.count", 2)]), "must be named"),
        (build([u32("split.count", 4_000_000)]), "at most 1000 parts"),
        (build([key("split.count", STRING, text("2"))]), "at most 1000 parts"),
    ],
)
def test_each_way_to_lie_has_its_error(tmp_path: Path, content: bytes, reason: str) -> None:
    refused(tmp_path, content, reason)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(ModelFileError):
            read_gguf_header(path)


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6)
)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_changed_bytes_give_a_typed_error_or_sound_tensors(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(GOOD)
    for position, value in changes:
        content[position] = value
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    try:
        header = read_gguf_header(path)
    except ModelFileError:
        return
    for entry in header.tensors.values():
        assert header.data_offset <= entry.offset <= len(content) - entry.nbytes
        blocks = math.prod(entry.shape) // entry.type.elements
        assert entry.nbytes == blocks * entry.type.nbytes


def part(number: int, count: int, name: str, total: int = 2, **more: int) -> bytes:
    values = {"split.no": number, "split.count": count, "split.tensors.count": total, **more}
    return build([u32(k, v) for k, v in values.items()], [tensor(name)])


def parts(folder: Path, *contents: bytes) -> Path:
    names = [f"m-{i + 1:05d}-of-{len(contents):05d}.gguf" for i in range(len(contents))]
    for name, content in zip(names, contents, strict=True):
        (folder / name).write_bytes(content)
    return folder / names[0]


def test_the_parts_of_a_model_are_read_together(tmp_path: Path) -> None:
    model = open_gguf(parts(tmp_path, part(0, 2, "a"), part(1, 2, "b")))
    assert list(model.tensors) == ["a", "b"]
    assert model.tensors["b"].file.path.name == "m-00002-of-00002.gguf"
    assert model.metadata["split.count"] == 2


def test_parts_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    path = parts(tmp_path, part(0, 2, "a"), part(1, 2, "a"))
    with pytest.raises(ModelFileError, match="two parts of the model hold a"):
        open_gguf(path)
    path = parts(tmp_path, part(0, 2, "a", total=5), part(1, 2, "b"))
    with pytest.raises(ModelFileError, match=r"hold 2 tensors, split.tensors.count says 5"):
        open_gguf(path)
    path = parts(tmp_path, part(0, 2, "a"), part(0, 2, "b"))
    with pytest.raises(ModelFileError, match="do not say that it is part 2"):
        open_gguf(path)
    with pytest.raises(ModelFileError, match="part 2 of a model; give the first"):
        parts(tmp_path, part(0, 2, "a"), part(1, 2, "b"))
        open_gguf(tmp_path / "m-00002-of-00002.gguf")
    os.remove(tmp_path / "m-00002-of-00002.gguf")
    with pytest.raises(ModelFileError, match=r"names m-00002-of-00002.gguf, which is missing"):
        open_gguf(path)


def test_a_part_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = parts(tmp_path / "in", part(0, 2, "a"), part(1, 2, "b"))
    second = tmp_path / "in" / "m-00002-of-00002.gguf"
    second.rename(tmp_path / "elsewhere")
    second.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="leads out of the folder"):
        open_gguf(path)


def test_a_folder_or_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "missing"):
        with pytest.raises(ModelFileError):
            open_gguf(path)


MEASURE = """
import resource, sys, time
from pathlib import Path
from martlet.checkpoint.gguf import read_gguf_header
from martlet.errors import ModelFileError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
try:
    header = read_gguf_header(Path(sys.argv[1]))
    print(len(header.tensors) + len(header.metadata), end=" ")
except ModelFileError as error:
    print("refused", end=" ")
print(time.process_time() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def words(count: int) -> bytes:
    return b"".join(text(f"w{i}") for i in range(count))


def bloated(name: str) -> bytes:
    match name:
        case "words":  # the most that is allowed
            return build([array("a", STRING, 1 << 20, words(1 << 20))], [], b"")
        case "keys":
            return build([u32(f"k{i}", i) for i in range(60_000)], [], b"")
        case "tensors":
            listed = [tensor(f"t{i}", (0,)) for i in range(60_000)]
            return build([], listed, b"")
        case "string":
            return build([key("k", STRING, struct.pack("<Q", 120 << 20))], [], bytes(120 << 20))
        case "arrays":
            numbers = array("a", U64, 1 << 20, bytes(8 << 20))
            return build([numbers, numbers.replace(b"a", b"b", 1)] * 9, [], b"")
        case _:
            return build([array("a", STRING, 1 << 20, bytes(7 << 20))], [], b"")


@pytest.mark.parametrize(
    ("name", "outcome"),
    [
        ("words", "1"),
        ("keys", "60000"),
        ("tensors", "60000"),
        ("string", "refused"),
        ("arrays", "refused"),
        ("zeros", "refused"),
    ],
)
def test_a_bloated_head_costs_little_time_and_memory(
    tmp_path: Path, name: str, outcome: str
) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(bloated(name))
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    result, seconds, grown_kib = done.stdout.split()
    assert result == outcome
    # Processor time, below one second on an idle machine; on a busy one, whose caches and cores
    # are shared, up to three times as much.
    assert float(seconds) < 3
    assert int(grown_kib) < 200 * 1024
