import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from martlet.checkpoint.planned import PlannedBlock, PlannedWeight
from martlet.checkpoint.safetensors import read_header
from martlet.checkpoint.store import open_store
from martlet.checkpoint.writer import StoreContents, StoreWriter
from martlet.compression.groups import quantize_groups
from martlet.errors import DiskFullError, ModelFileError, ModelNotFoundError, UsageError
from martlet.quantization.formats import INT8, parse_format
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

FIXED = {"shared.weight": torch.randn(10, 4).half(), "final_layer_norm.weight": torch.ones(4)}
LAYER = {
    "layer.0.q.weight": torch.arange(12, dtype=torch.int8).view(3, 4),
    "layer.0.q.weight_scale": torch.tensor([0.5, 1.0, 2.0]),
    "layer.0.layer_norm.weight": torch.tensor([1.0, 2.0, 3.0]).bfloat16(),
}
CONFIG = {"model_type": "t5", "d_model": 4}


def planned(name: str, prefix: str, tensors: dict[str, torch.Tensor]) -> PlannedBlock:
    weights = (
        PlannedWeight(prefix + key, tuple(t.shape), INT8 if t.dtype == torch.int8 else t.dtype)
        for key, t in tensors.items()
        if not key.endswith("_scale")
    )
    return PlannedBlock(name, prefix, tuple(weights))


def contents(num_layers: int = 2, **changes: object) -> StoreContents:
    blocks = [planned("fixed", "", FIXED)]
    blocks += [planned(f"encoder.{i}", f"encoder.block.{i}.", LAYER) for i in range(num_layers)]
    return StoreContents(tuple(blocks), CONFIG, "t5", **changes)  # type: ignore[arg-type]


def write(folder: Path, num_layers: int = 2, overwrite: bool = False, **changes: object) -> Path:
    with StoreWriter(folder, contents(num_layers, **changes), overwrite=overwrite) as writer:
        for name, tensor in FIXED.items():
            writer.write(name, tensor)
        for index in range(num_layers):
            for name, tensor in LAYER.items():
                writer.write(f"encoder.block.{index}.{name}", tensor)
    return folder


def edit_manifest(folder: Path, change: object) -> None:
    path = folder / "martlet.json"
    manifest = json.loads(path.read_text())
    change(manifest)  # type: ignore[operator]
    path.write_text(json.dumps(manifest))


def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    vocabulary = tmp_path / "v.txt"
    vocabulary.write_text("一\n二\n", encoding="utf-8")
    store = open_store(
        write(
            tmp_path / "model",
            tokenizer=("cpm2", {"vocab.txt": vocabulary}),
            generation={"top_p": 0.9},
        )
    )
    assert store.config == CONFIG
    assert (store.family, store.quantize) == ("t5", "int8")
    assert store.block_names == ("fixed", "encoder.0", "encoder.1")
    assert store.tokenizer is not None and store.tokenizer.files == ("vocab.txt",)
    assert (store.folder / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    assert store.generation == {"top_p": 0.9}
    fixed = store.block("fixed")
    assert list(fixed) == list(FIXED)
    for name, tensor in FIXED.items():
        assert torch.equal(fixed[name], tensor)
        assert fixed[name].dtype == tensor.dtype
    layer = store.block("encoder.1")
    assert list(layer) == ["layer.0.q.weight", "layer.0.layer_norm.weight"]
    query = layer["layer.0.q.weight"]
    assert isinstance(query, QuantizedTensor)
    assert torch.equal(query.data, LAYER["layer.0.q.weight"])
    assert torch.equal(query.scale, LAYER["layer.0.q.weight_scale"])
    store.verify()


def test_blocks_are_aligned_contiguous_and_disjoint(tmp_path: Path) -> None:
    store = open_store(write(tmp_path / "model"))
    end = 0
    for block in store.manifest.blocks:
        assert block.offset % 4096 == 0 and block.offset >= end
        end = block.offset + block.nbytes
        assert block.nbytes == store.block_nbytes(block.name)
        entries = read_header(store.folder / block.file).tensors
        for name in block.tensors:
            assert entries[name].offset % 64 == 0
            assert block.offset <= entries[name].offset
            assert entries[name].offset + entries[name].nbytes <= end
    assert store.nbytes == sum(map(store.block_nbytes, store.block_names))
    assert store.block("fixed")["shared.weight"].data_ptr() % 4096 == 0


def test_the_files_are_plain_safetensors_for_anyone(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    theirs = safetensors.torch.load_file(folder / "model.safetensors")
    real = {name for name in theirs if not name.startswith("__pad__.")}
    assert real == set(FIXED) | {f"encoder.block.{i}.{name}" for i in range(2) for name in LAYER}
    assert torch.equal(theirs["encoder.block.1.layer.0.q.weight"], LAYER["layer.0.q.weight"])


def test_big_models_are_cut_between_blocks(tmp_path: Path) -> None:
    store = open_store(write(tmp_path / "model", num_layers=3, max_file_bytes=8192))
    files = [block.file for block in store.manifest.blocks]
    assert (
        files == ["model-00001-of-00002.safetensors"] * 2 + ["model-00002-of-00002.safetensors"] * 2
    )
    assert torch.equal(store.block("encoder.2")["layer.0.q.weight"].data, LAYER["layer.0.q.weight"])
    store.verify()


def test_an_existing_destination_is_kept_unless_it_may_be_replaced(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", num_layers=1)
    with pytest.raises(UsageError, match="exists"):
        write(folder)
    assert len(open_store(folder).block_names) == 2
    write(folder, num_layers=2, overwrite=True)
    assert len(open_store(folder).block_names) == 3
    other = tmp_path / "letters"
    other.mkdir()
    (other / "dear.txt").write_text("x")
    with pytest.raises(UsageError, match="no folder that Martlet wrote"):
        write(other, overwrite=True)
    assert (other / "dear.txt").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["letters", "model"]


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt()])
def test_an_error_leaves_the_destination_as_it_was(tmp_path: Path, error: BaseException) -> None:
    old = write(tmp_path / "model", num_layers=1)
    with pytest.raises(type(error)), StoreWriter(old, contents(), overwrite=True) as writer:
        writer.write("shared.weight", FIXED["shared.weight"])
        raise error
    with pytest.raises(type(error)), StoreWriter(tmp_path / "new", contents()) as writer:
        raise error
    open_store(old).verify()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_too_little_space_is_found_before_the_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 50, 50))  # type: ignore[attr-defined]
    with pytest.raises(DiskFullError, match="50 are free"):
        write(tmp_path / "model")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_no_space_while_flushing_is_a_disk_full_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(DiskFullError, match="are free"):
        write(tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_writer_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    leftover = tmp_path / ".model.abc.partial"
    leftover.mkdir()
    (leftover / ".writing").touch()
    (leftover / "model.safetensors").write_bytes(b"half")
    write(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_writer_at_work_is_not_disturbed_by_another(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "model", contents(0), overwrite=True) as first:
        write(tmp_path / "model", num_layers=1)
        for name, tensor in FIXED.items():
            first.write(name, tensor)
    assert open_store(tmp_path / "model").block_names == ("fixed",)


def test_a_model_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="exists"),
        StoreWriter(tmp_path / "model", contents(0)) as first,
    ):
        write(tmp_path / "model", num_layers=1)
        for name, tensor in FIXED.items():
            first.write(name, tensor)
    assert open_store(tmp_path / "model").block_names == ("fixed", "encoder.0")


def test_a_folder_without_manifest_is_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"holds no model.*martlet convert"):
        open_store(tmp_path)
    with pytest.raises(ModelNotFoundError):
        open_store(tmp_path / "absent")


def test_verify_finds_a_changed_byte_and_reports_progress(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    seen: list[tuple[int, int, str]] = []
    open_store(folder).verify(lambda *step: seen.append(step))
    assert seen[-1][0] == seen[-1][1] > 0
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    with pytest.raises(ModelFileError, match="sha256"):
        open_store(folder).verify()


def test_a_truncated_file_is_refused_at_once(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    os.truncate(folder / "model.safetensors", 5000)
    with pytest.raises(ModelFileError, match="the manifest says"):
        open_store(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(format_version=3), "format_version"),
        (lambda m: m.update(family="../bert"), "family"),
        (lambda m: m.update(family=["t5"]), "family"),
        (lambda m: m.update(family="a" * 41), "family"),
        (lambda m: m.update(quantize=1), "quantize"),
        (lambda m: m["blocks"].clear(), "blocks"),
        (lambda m: m["blocks"].append(m["blocks"][0]), "twice"),
        (lambda m: m["blocks"][0].update(offset=-1), "offset"),
        (lambda m: m["blocks"][0].update(offset=True), "offset"),
        (lambda m: m["blocks"][0].update(nbytes=1 << 40), "whose data are"),
        (lambda m: m["blocks"][1].update(offset=m["blocks"][0]["offset"]), "outside its block"),
        (lambda m: m["blocks"][0]["tensors"].append("absent"), "has no tensor"),
        (lambda m: m["blocks"][1]["tensors"].append("shared.weight"), "without its prefix"),
        (lambda m: m["blocks"][1]["tensors"].pop(1), "is int8 but has no"),
        (lambda m: m["blocks"][0].update(file="../x"), "plain file name"),
        (lambda m: m["files"].pop("config.json"), "does not list"),
        (lambda m: m["files"].update({"/etc/passwd": m["files"]["config.json"]}), "plain file"),
        (lambda m: m["files"]["config.json"].update(sha256="zz"), "sha256"),
        (lambda m: m.update(tokenizer={"kind": "cpm2", "files": ["vocab.txt"]}), "does not list"),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, change: object, reason: str) -> None:
    folder = write(tmp_path / "model")
    edit_manifest(folder, change)
    with pytest.raises(ModelFileError, match=reason):
        open_store(folder)


def grouped(rows: int, columns: int, format: str) -> GroupedTensor:
    found = parse_format(format)
    assert found is not None
    return quantize_groups(torch.randn(rows, columns), found)


def write_groups(folder: Path, formats: dict[str, str], columns: int = 70) -> dict[str, object]:
    """A folder with one block of a matrix for each format, and what was written."""
    weights = {name: grouped(5, columns, format) for name, format in formats.items()}
    planned = tuple(PlannedWeight(name, (5, columns), w.format) for name, w in weights.items())
    with StoreWriter(
        folder, StoreContents((PlannedBlock("fixed", "", planned),), CONFIG, "t5")
    ) as writer:
        for name, weight in weights.items():
            assert writer.write_weight(name, weight) == weight.nbytes
    return dict(weights)


FORMATS = {
    "a": "int4-g32",
    "b": "int4-g64-asym",
    "c": "int8-g128",
}


def test_groups_are_read_back_bit_for_bit(tmp_path: Path) -> None:
    written = write_groups(tmp_path / "model", FORMATS)
    store = open_store(tmp_path / "model")
    assert store.quantize == "int4"
    read = store.block("fixed")
    assert list(read) == list(FORMATS)
    for name, format in FORMATS.items():
        one, other = written[name], read[name]
        assert isinstance(one, GroupedTensor) and isinstance(other, GroupedTensor)
        assert other.format.name == format and other.shape == (5, 70)
        assert torch.equal(other.data, one.data)
        assert torch.equal(other.dequantize(), one.dequantize())
    assert [(w.name, w.format.name) for w in store.block_weights("fixed") if w.format] == list(
        FORMATS.items()
    )
    assert list(store.manifest.blocks[0].tensors) == [
        *("a", "a_scale", "a_row_scale"),
        *("b", "b_scale", "b_zero", "b_row_scale"),
        *("c", "c_scale", "c_row_scale"),
    ]
    store.verify()


def test_only_a_folder_with_groups_asks_for_a_reader_that_knows_them(tmp_path: Path) -> None:
    write_groups(tmp_path / "new", FORMATS)
    write(tmp_path / "old")
    new, old = (
        json.loads((tmp_path / name / "martlet.json").read_text()) for name in ("new", "old")
    )
    assert (new["format_version"], old["format_version"]) == (2, 1)
    assert new["formats"]["b"] == {"format": "int4-g64-asym", "shape": [5, 70]}
    assert "formats" not in old and "compression" not in old
