import json
import math
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from martlet.checkpoint.safetensors import DTYPES, map_tensors, read_header
from martlet.checkpoint.shards import read_shard_index
from martlet.errors import ModelFileError


def test_every_type_is_read_as_the_reference_writes_it(tmp_path: Path) -> None:
    tensors = {
        name: torch.tensor([[1, 0, 1], [0, 1, 1]]).to(dtype) for name, dtype in DTYPES.items()
    }
    tensors["scalar"] = torch.tensor(2.5)
    tensors["empty"] = torch.empty(0, 4)
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    mapped = map_tensors(path)
    assert mapped.header.metadata == {"format": "pt"}
    assert set(mapped) == set(tensors)
    for name, tensor in tensors.items():
        assert mapped[name].dtype == tensor.dtype
        assert mapped[name].shape == tensor.shape
        assert torch.equal(mapped[name], tensor)


def test_tensors_are_views_that_outlive_the_map_and_never_change_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.arange(1000), "b": torch.zeros(3)}, path)
    before = path.read_bytes()
    mapped = map_tensors(path)
    first, again = mapped["a"], mapped["a"]
    assert first.data_ptr() == again.data_ptr()
    del mapped, again
    path.unlink()
    assert int(first.sum()) == 499500
    path.write_bytes(before)
    other = map_tensors(path)["a"]
    other.fill_(1)
    assert path.read_bytes() == before


def test_forgotten_pages_are_read_again_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.arange(100_000)}, path)
    mapped = map_tensors(path)
    tensor = mapped["a"]
    total = int(tensor.sum())
    mapped.file.forget()
    assert int(tensor.sum()) == total


def test_the_order_of_the_entries_does_not_matter(tmp_path: Path) -> None:
    table = {
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [3, 5]},
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
    }
    text = json.dumps(table).encode() + b"   "
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"12345")
    mapped = map_tensors(path)
    assert list(mapped) == ["a", "b"]
    assert mapped["b"].tolist() == list(b"45")


def test_a_missing_file_a_folder_and_a_pipe_are_typed_errors(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe"):
        with pytest.raises(ModelFileError):
            read_header(path)


def index(folder: Path, weight_map: object) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": weight_map}))
    return path


def test_a_shard_index_gives_the_file_of_each_tensor(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).touch()
    found = read_shard_index(index(tmp_path, {"a": "one", "b": "two", "c": "one"}))
    assert found == {"a": tmp_path / "one", "b": tmp_path / "two", "c": tmp_path / "one"}


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "sub/file",
        "..",
        ".",
        "",
        "a\\b",
        "C:x",
        "nul\0",
        "x" * 300,
        7,
        None,
        ["a"],
        "absent",
    ],
)
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, name: object) -> None:
    (tmp_path / "secret").touch()
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "file").touch()
    with pytest.raises(ModelFileError):
        read_shard_index(index(folder, {"a": name}))


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").touch()
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "shard").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelFileError, match="leads out of the folder"):
        read_shard_index(index(folder, {"a": "shard"}))


def test_the_links_of_the_hub_cache_are_followed_to_its_blobs_only(tmp_path: Path) -> None:
    model = tmp_path / "models--org--name"
    snapshot = model / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "blobs" / "123").touch()
    (tmp_path / "elsewhere").touch()
    (snapshot / "good").symlink_to("../../blobs/123")
    (snapshot / "bad").symlink_to("../../../elsewhere")
    assert read_shard_index(index(snapshot, {"a": "good"})) == {"a": snapshot / "good"}
    with pytest.raises(ModelFileError, match="leads out"):
        read_shard_index(index(snapshot, {"a": "bad"}))


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", {"": "one"}, {"a\n": "one"}])
def test_a_malformed_index_is_refused(tmp_path: Path, weight_map: object) -> None:
    (tmp_path / "one").touch()
    with pytest.raises(ModelFileError):
        read_shard_index(index(tmp_path, weight_map))


def test_sizes_multiply_to_the_bytes_of_the_entry(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(3, 5).half(), "b": torch.zeros(7)}, path)
    for entry in read_header(path).tensors.values():
        assert entry.nbytes == math.prod(entry.shape) * entry.dtype.itemsize
