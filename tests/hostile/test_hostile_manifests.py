"""Model folders whose manifest and file disagree about matrices with groups."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from martlet.checkpoint.planned import PlannedBlock, PlannedTensor, PlannedWeight
from martlet.checkpoint.store import open_store
from martlet.checkpoint.writer import StoreContents, StoreWriter
from martlet.compression.groups import quantize_groups
from martlet.compression.nearest import quantize_matrix
from martlet.errors import ModelFileError
from martlet.quantization.formats import WeightFormat, parse_format

Manifest = dict[str, Any]
Part = tuple[str, torch.dtype, tuple[int, ...]]
Parts = tuple[Part, ...]
SHAPE = (5, 70)
FORMATS = {"a": "int4-g32", "b": "int4-g64-asym", "c": "int8-g128", "d": "int8"}


def write(folder: Path) -> Path:
    torch.manual_seed(3)
    formats = {name: parse_format(format) for name, format in FORMATS.items()}
    weights = [PlannedWeight(name, SHAPE, format) for name, format in formats.items() if format]
    weights.append(PlannedWeight("norm", (70,), torch.float16))
    block = PlannedBlock("fixed", "", tuple(weights))
    with StoreWriter(folder, StoreContents((block,), {"model_type": "t5"}, "t5")) as writer:
        for name, format in formats.items():
            assert format is not None
            writer.write_weight(name, quantize_matrix(torch.randn(SHAPE), format))
        writer.write("norm", torch.ones(70).half())
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound") / "model")


def changed(sound: Path, folder: Path, change: Callable[[Manifest], object]) -> Path:
    """A copy by links, with another manifest."""
    folder.mkdir()
    for file in sound.iterdir():
        (folder / file.name).hardlink_to(file)
    manifest = json.loads((sound / "martlet.json").read_text())
    change(manifest)
    (folder / "martlet.json").unlink()
    (folder / "martlet.json").write_text(json.dumps(manifest))
    return folder


def entry(name: str, **fields: object) -> Callable[[Manifest], object]:
    return lambda m: m["formats"][name].update(fields)


def without(name: str) -> Callable[[Manifest], object]:
    return lambda m: m["blocks"][0]["tensors"].remove(name)


def nested(depth: int) -> object:
    return [nested(depth - 1)] if depth else 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.update(format_version=1), "format_version 1 does not know"),
        (lambda m: m.update(format_version=True), "format_version is True"),
        (lambda m: m.update(format_version=2.0), "format_version is 2.0"),
        (lambda m: m.update(quantize="int8"), "quantize is int8, but by formats it would be int4"),
        (lambda m: m.update(formats=[]), "formats is not an object"),
        (lambda m: m.update(formats={}, quantize="int8"), r"a_scale is torch.float16 \[5, 3\]"),
        (lambda m: m.update(formats={}), "by formats it would be none or int8"),
        (lambda m: m["formats"].update(a=7), "entry 'a' is not an object"),
        (lambda m: m["formats"].update(x=m["formats"]["a"]), "'x', which is in no block"),
        (lambda m: m["formats"].update(norm=m["formats"]["a"]), r"whose norm is torch.uint8"),
        (
            lambda m: m["formats"].update(d=m["formats"]["c"]),
            r"d_scale is torch.float16 \[5, 1\]; it is torch.float32",
        ),
        (lambda m: m["formats"].update(a_scale=m["formats"]["a"]), "whose a_scale is torch.uint8"),
        (lambda m: m["formats"].pop("c"), r"c_scale is torch.float16 \[5, 1\], which does not fit"),
        (entry("a", format="int4"), "format of 'a' is 'int4'"),
        (entry("a", format="int4-g48"), "format of 'a' is 'int4-g48'"),
        (entry("a", format="int3-g32"), "format of 'a' is 'int3-g32'"),
        (entry("a", format="int8-g32-asym"), "format of 'a' is 'int8-g32-asym'"),
        (entry("a", format="int4-g32\n"), "format of 'a' is"),
        (entry("a", format=["int4-g32"]), "format of 'a' is"),
        (entry("a", format=None), "format of 'a' is None"),
        (lambda m: m["formats"].update(d={"format": "int8"}), "format of 'd' is 'int8'"),
        (entry("a", format="int8-g32"), "a is int8-g32"),
        (entry("a", format="int4-g64"), r"a_scale is torch.float16 \[5, 2\]; it is .*\[5, 3\]"),
        (entry("a", format="int4-g32-asym"), "has no a_zero in its block"),
        (entry("b", format="int4-g64"), "b is int4-g64, which has no zeros, but there is b_zero"),
        (entry("a", shape=[5, 72]), r"a is torch.uint8 \[5, 36\]; it is torch.uint8 \[5, 35\]"),
        (entry("c", shape=[5, 71]), r"c is torch.int8 \[5, 71\]"),
        (entry("a", shape=[6, 70]), r"\[6, 35\]; it is"),
        (entry("a", shape=[5]), "not two sizes"),
        (entry("a", shape=[5, 70, 1]), "not two sizes"),
        (entry("a", shape=[5, -70]), "not two sizes"),
        (entry("a", shape=[0, 70]), "not two sizes"),
        (entry("a", shape=[5, 70.0]), "not two sizes"),
        (entry("a", shape=[True, 70]), "not two sizes"),
        (entry("a", shape=[5, 1 << 62]), "not two sizes"),
        (entry("a", shape="570"), "not two sizes"),
        (without("a"), "'a', which is in no block"),
        (without("a_scale"), "has no a_scale in its block"),
        (without("a_row_scale"), "has no a_row_scale in its block"),
        (without("b_zero"), "has no b_zero in its block"),
        (lambda m: m.update(compression=3), "compression is not an object"),
        (lambda m: m.update(compression={"a": nested(30)}), "nested more than 20 deep"),
        (lambda m: m.update(compression={"a": "\ud800"}), "not plain JSON.*surrogates"),
        (lambda m: m.update(compression={"a": [float("nan")]}), "not plain JSON"),
    ],
)
def test_a_manifest_that_lies_about_groups_is_refused(
    sound: Path, tmp_path: Path, change: Callable[[Manifest], object], reason: str
) -> None:
    with pytest.raises(ModelFileError, match=reason):
        open_store(changed(sound, tmp_path / "model", change))


def test_the_folder_that_the_lies_are_made_from_is_sound(sound: Path, tmp_path: Path) -> None:
    store = open_store(changed(sound, tmp_path / "model", lambda m: m))
    assert list(store.block("fixed")) == [*FORMATS, "norm"]
    assert {n: f.format.name for n, f in store.manifest.formats.items()} == {
        name: format for name, format in FORMATS.items() if name != "d"
    }


@dataclass(frozen=True)
class Lie(PlannedWeight):
    """A weight with groups whose tensors in the file are others than its format has."""

    parts: Parts = ()

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        return tuple(PlannedTensor(*part) for part in self.parts)


def write_lie(folder: Path, lie: Lie, tensors: Mapping[str, torch.Tensor]) -> Path:
    contents = StoreContents((PlannedBlock("fixed", "", (lie,)),), {"model_type": "t5"}, "t5")
    with StoreWriter(folder, contents) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)
    return folder


GOOD: Parts = (
    ("a", torch.uint8, (5, 35)),
    ("a_scale", torch.float16, (5, 2)),
    ("a_zero", torch.float16, (5, 2)),
    ("a_row_scale", torch.float32, (5,)),
)


@pytest.mark.parametrize(
    ("index", "lie"),
    [
        (0, ("a", torch.int8, (5, 35))),
        (0, ("a", torch.uint8, (35, 5))),
        (0, ("a", torch.uint8, (5, 70))),
        (0, ("a", torch.uint8, (175,))),
        (1, ("a_scale", torch.bfloat16, (5, 2))),
        (1, ("a_scale", torch.float32, (5, 2))),
        (1, ("a_scale", torch.float16, (2, 5))),
        (1, ("a_scale", torch.float16, (10,))),
        (2, ("a_zero", torch.uint8, (5, 2))),
        (2, ("a_zero", torch.float16, (5, 1))),
        (3, ("a_row_scale", torch.float16, (5,))),
        (3, ("a_row_scale", torch.float32, (1,))),
        (3, ("a_row_scale", torch.float32, (5, 1))),
    ],
)
def test_tensors_of_another_type_or_shape_than_the_format_has_are_refused(
    tmp_path: Path, index: int, lie: Part
) -> None:
    parts = (*GOOD[:index], lie, *GOOD[index + 1 :])
    weight = Lie("a", SHAPE, WeightFormat(4, 64, has_zeros=True), parts=parts)
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, dtype, shape in parts}
    with pytest.raises(ModelFileError, match=rf"a is int4-g64-asym \[5, 70\], whose {lie[0]} is"):
        open_store(write_lie(tmp_path / "m", weight, tensors))


def test_bytes_without_a_format_are_no_weight(sound: Path, tmp_path: Path) -> None:
    def only_the_bytes(manifest: Manifest) -> None:
        del manifest["formats"]
        manifest.update(format_version=1, quantize="none")
        manifest["blocks"][0]["tensors"] = ["a"]

    with pytest.raises(ModelFileError, match=r"a is torch\.uint8 but has no entry in formats"):
        open_store(changed(sound, tmp_path / "model", only_the_bytes))


def test_two_weights_cannot_have_one_scale(tmp_path: Path) -> None:
    """The scale of rows of "w" is named as that of int8 rows called "w_row" would be."""
    format = WeightFormat(8, 32)
    stored = quantize_groups(torch.randn(5, 32), format)
    tensors = {
        "w": stored.data,
        "w_scale": stored.scale,
        "w_row_scale": stored.row_scale,
        "w_row": torch.zeros(5, 9, dtype=torch.int8),
    }
    parts = tuple((name, tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items())
    weight = Lie("w", (5, 32), format, parts=parts)
    with pytest.raises(ModelFileError, match="w_row_scale would belong to w_row and to another"):
        open_store(write_lie(tmp_path / "m", weight, tensors))


@given(data=st.data())
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_manifest_with_changed_bytes_gives_a_typed_error_or_sound_weights(
    sound: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    content = bytearray((sound / "martlet.json").read_bytes())
    start = content.index(b'"formats"')
    positions = st.integers(start, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(positions)] = data.draw(st.integers(0, 255))
    folder = changed(sound, tmp_path_factory.mktemp("changed") / "model", lambda m: m)
    (folder / "martlet.json").write_bytes(content)
    try:
        store = open_store(folder)
    except ModelFileError:
        return
    for weight in store.block("fixed").values():
        assert torch.isfinite(
            weight if isinstance(weight, torch.Tensor) else weight.dequantize()
        ).all()
