import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from martlet.checkpoint.safetensors import map_tensors, read_header
from martlet.errors import ModelFileError

A = {"dtype": "F16", "shape": [2, 2], "data_offsets": [0, 8]}
B = {"dtype": "I8", "shape": [4], "data_offsets": [8, 12]}


def build(header: Any, data: bytes = b"\0" * 12) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data


def entry(**changes: object) -> dict[str, object]:
    return {**A, **changes}


GOOD = build({"a": A, "b": B, "__metadata__": {"k": "v"}})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "too few"),
        (b"\0" * 7, "too few"),
        (struct.pack("<Q", 0) + b"{}", "header claims 0"),
        (struct.pack("<Q", 1) + b"{}", "header claims 1"),
        (struct.pack("<Q", 2**63) + b"{}", "header claims 9,223"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "header claims"),
        (struct.pack("<Q", 3) + b"{}", "at most 2"),
        (struct.pack("<Q", 17 << 20) + bytes(18 << 20), "at most 16,777,216"),
        (build(b"not json at all"), "not valid JSON"),
        (build(b"\xff\xfe{}"), "not valid JSON"),
        (build(b"[1, 2]"), "not a JSON object"),
        (build(b"{}" + b"\0"), "not valid JSON"),
        (build(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "not valid JSON"),
        (build(b'{"a": 1' + b"0" * 5000 + b"}"), "not valid JSON"),
        (build(b'{"a": {}, "a": {}}'), "duplicate key 'a'"),
        (build(b'{"a": {"dtype": "I8", "dtype": "I8"}}'), "duplicate key 'dtype'"),
        (build({"a": 3}), "needs exactly"),
        (build({"a": {**A, "extra": 1}}), "needs exactly"),
        (build({"a": {"dtype": "F16", "shape": [2, 2]}}), "needs exactly"),
        (build({"a": entry(dtype="F8"), "b": B}), "dtype 'F8'"),
        (build({"a": entry(dtype=["F16"]), "b": B}), "dtype"),
        (build({"a": entry(shape=[2, -2]), "b": B}), "not a list of sizes"),
        (build({"a": entry(shape=[2.0, 2]), "b": B}), "not a list of sizes"),
        (build({"a": entry(shape=[True, 4]), "b": B}), "not a list of sizes"),
        (build({"a": entry(shape="22"), "b": B}), "not a list of sizes"),
        (build({"a": entry(shape=[1] * 9), "b": B}), "not a list of sizes"),
        (build({"a": entry(shape=[2**62, 4]), "b": B}), "not a list of sizes"),
        (build({"a": entry(shape=[2**40, 2**40, 0])}), "too large"),
        (build({"a": entry(shape=[2, 3]), "b": B}), "needs 12 bytes"),
        (build({"a": entry(dtype="F32"), "b": B}), "needs 16 bytes"),
        (build({"a": entry(data_offsets=[8, 0]), "b": B}), "give -8"),
        (build({"a": entry(data_offsets=[0]), "b": B}), "not a pair"),
        (build({"a": entry(data_offsets=[-8, 0]), "b": B}), "not a pair"),
        (build({"a": A, "b": {**B, "data_offsets": [6, 10]}}), "overlaps"),
        (build({"a": A, "b": {**B, "data_offsets": [0, 4]}}), "overlaps"),
        (build({"a": A, "b": {**B, "data_offsets": [9, 13]}}, bytes(13)), "leaves a hole"),
        (build({"b": B}), "leaves a hole"),
        (build({"a": A, "b": B}, bytes(11)), "truncated"),
        (build({"a": A, "b": B}, bytes(13)), "belong to no tensor"),
        (build({"a": A}), "belong to no tensor"),
        (build({"": A, "b": B}), "empty tensor name"),
        (build({"a\0": A, "b": B}), "unprintable"),
        (build({"\ud800": A, "b": B}), "unprintable"),
        (build({"x" * 600: A, "b": B}), "600 characters"),
        (build({"a": A, "b": B, "__metadata__": {"k": 1}}), "not a string"),
        (build({"a": A, "b": B, "__metadata__": [1]}), "not an object"),
    ],
)
def test_each_way_to_lie_has_its_error(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=reason):
        read_header(path)


def test_the_file_that_the_lies_are_made_from_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD)
    assert {name: tensor.sum().item() for name, tensor in map_tensors(path).items()} == {
        "a": 0,
        "b": 0,
    }


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(GOOD[:length])
    with pytest.raises(ModelFileError):
        map_tensors(path)


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
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    try:
        tensors = map_tensors(path)
    except ModelFileError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) == 12


MEASURE = """
import resource, sys, time
from pathlib import Path
from martlet.checkpoint.safetensors import read_header
from martlet.errors import ModelFileError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
started = time.process_time()
try:
    print(len(read_header(Path(sys.argv[1])).tensors), end=" ")
except ModelFileError as error:
    print("refused", end=" ")
print(time.process_time() - started, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


def many(count: int, **changes: object) -> bytes:
    table = {
        f"model.layers.{i}.weight": {"dtype": "F32", "shape": [0, i], "data_offsets": [0, 0]}
        for i in range(count)
    }
    return build(table, b"")


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (many(100_000), "100000"),
        (many(200_001), "refused"),
        (build(b'{"a":[' + b"[]," * 4_000_000 + b"[]]}"), "refused"),
        (build(b'{"a":[' + b"1.5," * 4_000_000 + b"1]}"), "refused"),
        (build(b'{"a":' + b"{" * 8_000_000), "refused"),
        (build(b'{"a":"' + b"x" * 16_000_000 + b'"}'), "refused"),
    ],
    ids=["100k", "200k", "lists", "floats", "braces", "string"],
)
def test_a_bloated_header_costs_little_time_and_memory(
    tmp_path: Path, content: bytes, outcome: str
) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], capture_output=True, text=True, check=True
    )
    result, seconds, grown_kib = done.stdout.split()
    assert result == outcome
    # Processor time, below one second on an idle machine; on a busy one, whose caches and cores
    # are shared, up to three times as much.
    assert float(seconds) < 3
    assert int(grown_kib) < 200 * 1024
