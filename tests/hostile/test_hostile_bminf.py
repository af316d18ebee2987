import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from martlet.conversion.bminf import parse_records
from martlet.errors import ModelFileError


def name(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()


def tensor(label: str, shape: tuple[int, ...] = (2, 3), code: int = 0, raw: bytes = b"") -> bytes:
    raw = raw or bytes(range(6))
    dims = struct.pack(f"<B{len(shape)}I", len(shape), *shape)
    return name(label) + dims + struct.pack("<IB", len(raw), code) + raw


def head(num_tensors: int, num_parts: int) -> bytes:
    return struct.pack("<II", num_tensors, num_parts)


GOOD = (
    head(1, 2)
    + tensor("scale", (3,), 1)
    + name("empty") + head(0, 0)
    + name("layers") + head(0, 1) + name("0") + head(1, 0) + tensor("weight")
)  # fmt: skip


def test_a_record_is_read_as_a_tree(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(GOOD)
    table = parse_records(path)
    assert list(table.names()) == ["scale", "layers.0.weight"]
    assert table.find("layers.0.weight").load().tolist() == [[0, 1, 2], [3, 4, 5]]
    assert table.find("scale").load().shape == (3,)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "more bytes are expected"),
        (b"\0" * 8, "holds no tensor"),
        (GOOD + b"\0", "the file goes on"),
        (head(2**32 - 1, 0), "too many"),
        (head(0, 2**32 - 1), "too many"),
        (head(3, 0) + tensor("a"), "more bytes are expected"),
        (head(2, 0) + tensor("a") * 2, "occurs twice"),
        (head(1, 0) + struct.pack("<I", 2**32 - 1), "a name of 4,294,967,295 bytes"),
        (head(1, 0) + struct.pack("<I", 0), "a name of 0 bytes"),
        (head(1, 0) + struct.pack("<I", 2) + b"\xff\xfe", "not UTF-8"),
        (head(1, 0) + tensor("a\n"), "unprintable"),
        (head(1, 0) + tensor("a", (1,) * 9), "9 axes"),
        (head(1, 0) + tensor("a", code=3), "type 3 is unknown"),
        (head(1, 0) + tensor("a", code=1), "does not make 6 bytes"),
        (head(1, 0) + tensor("a", (2, 2)), "does not make 6 bytes"),
        (head(1, 0) + tensor("a", (2**32 - 1,) * 8), "does not make 6 bytes"),
        (head(1, 0) + tensor("a", (0, 3)), "does not make"),
        ((head(0, 1) + name("a")) * 20 + head(0, 0), "more than 8 deep"),
    ],
)
def test_each_way_to_lie_has_its_error(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    with pytest.raises(ModelFileError, match=reason):
        parse_records(path)


@pytest.mark.parametrize("length", range(len(GOOD)))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(GOOD[:length])
    with pytest.raises(ModelFileError):
        parse_records(path)


@given(
    st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6)
)
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_changed_bytes_give_a_typed_error_or_tensors_inside_the_file(
    tmp_path: Path, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(GOOD)
    for position, value in changes:
        content[position] = value
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(content)
    try:
        table = parse_records(path)
    except ModelFileError:
        return
    for label in table.names():
        found = table.find(label)
        assert found.offset + found.load().nbytes <= len(GOOD)
