import io
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from martlet.conversion import pickle_child
from martlet.conversion.pickle_index import read_index
from martlet.errors import ModelFileError


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


def replace_pickle(path: Path, payload: bytes) -> None:
    """Put another data.pkl into a torch zip file."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, payload if name.endswith("data.pkl") else content)


def save(path: Path, value: Any, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_a_command_is_refused_and_does_not_run_it(
    tmp_path: Path, legacy: bool
) -> None:
    sentinel = tmp_path / "sentinel"
    state = {"module": {"a": torch.zeros(2)}, "evil": Runs(f"touch {sentinel}")}
    path = save(tmp_path / "mp_rank_00_model_states.pt", state, legacy=legacy)
    with pytest.raises(ModelFileError, match=r"posix\.system"):
        read_index(path)
    assert not sentinel.exists()


def test_a_bare_pickle_and_a_first_pickle_that_runs_a_command_are_refused(tmp_path: Path) -> None:
    sentinel = tmp_path / "sentinel"
    for number, protocol in enumerate(range(6)):
        path = tmp_path / f"{number}.pt"
        path.write_bytes(pickle.dumps(Runs(f"touch {sentinel}"), protocol=protocol))
        with pytest.raises(ModelFileError, match=r"posix\.system"):
            read_index(path)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "name",
    [
        "builtins eval",
        "builtins exec",
        "builtins getattr",
        "builtins __import__",
        "os system",
        "subprocess Popen",
        "torch load",
        "torch.storage _load_from_bytes",
        "torch.hub load",
        "torch._utils _rebuild_tensor_v2.__globals__",
        "numpy load",
        "numpy.core.multiarray fromfile",
        "collections OrderedDict.__init__",
        "__main__ pickle",
        "martlet.api load",
    ],
)
def test_any_name_off_the_list_is_refused_by_name(tmp_path: Path, name: str) -> None:
    module, attribute = name.split()
    path = save(tmp_path / "x.pt", {"a": torch.zeros(2)})
    payload = (
        b"\x80\x04"
        + b"\x8c" + bytes([len(module)]) + module.encode()
        + b"\x8c" + bytes([len(attribute)]) + attribute.encode()
        + b"\x93."
    )  # fmt: skip
    replace_pickle(path, payload)
    with pytest.raises(ModelFileError, match=r"the pickle asks for " + module.replace(".", r"\.")):
        read_index(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_all_that_training_leaves_in_a_checkpoint_is_passed_over(
    tmp_path: Path, legacy: bool
) -> None:
    base = torch.arange(24.0).view(4, 6)
    state = {
        "module": OrderedDict(
            view=base[1:3, 2:5],
            turned=base.T,
            shared=base,
            half=torch.ones(3).half(),
            brain=torch.ones(2, 2).bfloat16(),
            scalar=torch.tensor(3),
            empty=torch.empty(0, 3),
            parameter=torch.nn.Parameter(torch.ones(2)),
            flags=torch.tensor([True, False]),
        ),
        "numpy": np.random.get_state(),
        "numbers": [np.float64(1.5), np.int32(3), np.arange(5)],
        "names": {"x", "y"},
        "frozen": frozenset({1}),
        "size": torch.Size([1, 2]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "bytes": b"\x00\xff",
        "step": 17,
        "none": None,
        "deep": [[(torch.ones(1),)]],
    }
    index = read_index(save(tmp_path / "x.pt", state, legacy=legacy))
    assert index.values["step"] == 17
    assert ("deep", "0", "0", "0") in index.tensors
    for name, tensor in state["module"].items():  # type: ignore[union-attr]
        found = index.tensors[("module", name)].load()
        assert found.dtype == tensor.dtype, name
        assert torch.equal(found, tensor), name


def test_metadata_of_a_state_dict_does_not_get_in_the_way(tmp_path: Path) -> None:
    state = torch.nn.Linear(2, 3).state_dict()
    assert hasattr(state, "_metadata")
    index = read_index(save(tmp_path / "x.pt", state))
    assert torch.equal(index.tensors[("weight",)].load(), state["weight"])


GOOD = io.BytesIO()
torch.save({"a": torch.arange(6.0), "b": {"c": torch.ones(2, 2).half()}}, GOOD)
OLD = io.BytesIO()
torch.save(
    {"a": torch.arange(6.0), "b": {"c": torch.ones(2, 2).half()}},
    OLD,
    _use_new_zipfile_serialization=False,
)


def index_of(content: bytes) -> dict[str, Any]:
    """What the child would answer, without starting one."""
    try:
        return pickle_child.index(io.BytesIO(content))
    except pickle_child.RefusedError as error:
        return {"error": str(error)}
    except Exception as error:  # the child reports these as well
        return {"error": repr(error)}


@pytest.mark.parametrize("content", [GOOD.getvalue(), OLD.getvalue()], ids=["zip", "legacy"])
def test_the_parent_refuses_what_reaches_outside_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.pt"
    for part in (0, 1, 8, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:part])
        with pytest.raises(ModelFileError):
            read_index(path)
    path.write_bytes(content)
    assert torch.equal(read_index(path).tensors[("a",)].load(), torch.arange(6.0))


@given(data=st.data())
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@pytest.mark.parametrize("content", [GOOD.getvalue(), OLD.getvalue()], ids=["zip", "legacy"])
def test_mutated_files_give_a_typed_error_or_tensors_inside_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, data: st.DataObject
) -> None:
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "x.pt"
    path.write_bytes(changed)
    answer = index_of(bytes(changed))
    monkeypatch.setattr("martlet.conversion.pickle_index._ask_child", lambda _: answer)
    if "error" in answer:
        return
    try:
        tensors = read_index(path).tensors
    except ModelFileError:
        return
    for tensor in tensors.values():
        tensor.load().sum()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float8"},
        {"dtype": None},
        {"shape": [-1]},
        {"shape": [1 << 61]},
        {"shape": [7]},
        {"shape": [6, 1]},
        {"stride": [2]},
        {"stride": [True]},
        {"stride": [1 << 59]},
        {"offset": -8},
        {"offset": 1 << 50},
        {"offset": 1.5},
        {"end": 1 << 50},
        {"keys": []},
        {"keys": ["a\n"]},
        {"keys": [1]},
        {"keys": "a"},
    ],
)
def test_an_answer_that_lies_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    path = save(tmp_path / "x.pt", {"a": torch.arange(6.0)})
    answer = index_of(path.read_bytes())
    answer["tensors"][0].update(change)
    monkeypatch.setattr("martlet.conversion.pickle_index._ask_child", lambda _: answer)
    with pytest.raises(ModelFileError):
        read_index(path)


def test_a_compressed_member_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"a": torch.arange(6.0)})
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(ModelFileError, match="is compressed"):
        read_index(path)


def test_a_zip_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ModelFileError, match="not a torch checkpoint"):
        read_index(path)


@pytest.mark.slow
def test_a_pickle_that_asks_for_memory_without_end_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"a": torch.zeros(2)})
    # A list that holds the one before it twice, 60 times: small in memory, endless to walk through.
    doubled = b"\x80\x02]q\x00" + b"".join(
        b"]" + b"(" + b"h" + bytes([n]) + b"h" + bytes([n]) + b"e" + b"q" + bytes([n + 1])
        for n in range(60)
    )
    replace_pickle(path, doubled + b".")
    with pytest.raises(ModelFileError, match="nested more than"):
        read_index(path)
    # The same with a thousand in place of two, and fewer levels.
    wide = b"\x80\x02]q\x00" + b"".join(
        b"](" + (b"h" + bytes([n])) * 1000 + b"eq" + bytes([n + 1]) for n in range(8)
    )
    replace_pickle(path, wide + b".")
    with pytest.raises(ModelFileError, match="counted as often"):
        read_index(path)
    # A byte array of 1 TiB.
    replace_pickle(path, b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".")
    with pytest.raises(ModelFileError):
        read_index(path)


def test_an_object_that_contains_itself_is_refused(tmp_path: Path) -> None:
    loop: list[Any] = []
    loop.append(loop)
    path = save(tmp_path / "x.pt", {"a": torch.zeros(2), "loop": loop})
    with pytest.raises(ModelFileError, match="nested more than"):
        read_index(path)


def test_the_child_can_open_nothing_and_write_nothing(tmp_path: Path) -> None:
    # The limits are set before the pickle is read; a child that is made to misbehave afterwards
    # must find no descriptor for a file, a pipe or a socket.
    probe = (
        "import sys; sys.path.insert(0, sys.argv[1]); import pickle_child, socket, os\n"
        "file = open(sys.argv[2], 'rb')\n"
        "pickle_child._give_up_resources(file.fileno())\n"
        "for act in (lambda: open(sys.argv[2]), socket.socket, os.pipe):\n"
        "    try:\n"
        "        act()\n"
        "    except OSError:\n"
        "        print('refused')\n"
    )
    path = tmp_path / "x"
    path.write_bytes(b"x")
    folder = str(Path(pickle_child.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-I", "-c", probe, folder, str(path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["refused"] * 3
