"""A model folder with groups, byte by byte, as docs/format.md describes it.

Writer and reader may be changed together and still agree, with all older folders left behind. These
bytes change only when somebody means it.
"""

import json
from pathlib import Path

import pytest
import torch

from martlet.checkpoint.planned import PlannedBlock, PlannedWeight
from martlet.checkpoint.store import open_store
from martlet.checkpoint.writer import StoreContents, StoreWriter
from martlet.quantization.formats import WeightFormat
from martlet.quantization.nibbles import pack_nibbles
from martlet.quantization.scheme import GroupedTensor

# Each tensor as it lies in the file, in file order, and what its header says about it.
TENSORS = {
    # (5 input + 3 row) mod 16 in 4 bits, two rows of 35 inputs; the last byte of a row is half full
    "a": (
        ("U8", [2, 18]),
        "50fa943ed8721cb650fa943ed8721cb6500a832dc7610ba54fe9832dc7610ba54fe9830d",
    ),
    # 0.5, -0.25 | 1.5, 2^-14
    "a_scale": (("F16", [2, 2]), "003800b4003e0004"),
    # 2^-10 | 1
    "a_row_scale": (("F32", [2]), "0000803a0000803f"),
    # (3 input + 1) mod 16 in 4 bits, one row of 131 inputs
    "b": (("U8", [1, 66]), "41a70d63c92f85eb" * 8 + "4107"),
    "b_scale": (("F16", [1, 2]), "003800b4"),
    # 7.5, 8
    "b_zero": (("F16", [1, 2]), "80470048"),
    "b_row_scale": (("F32", [1]), "0000803f"),
    # 7 input mod 255 - 127 in 8 bits, one row of 33 inputs
    "c": (
        ("I8", [1, 33]),
        "81888f969da4abb2b9c0c7ced5dce3eaf1f8ff060d141b222930373e454c535a61",
    ),
    "c_scale": (("F16", [1, 2]), "003e0004"),
    "c_row_scale": (("F32", [1]), "0000803a"),
}
FORMATS = {
    "a": {"format": "int4-g32", "shape": [2, 35]},
    "b": {"format": "int4-g128-asym", "shape": [1, 131]},
    "c": {"format": "int8-g32", "shape": [1, 33]},
}


def halves(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float16)


def weights() -> dict[str, GroupedTensor]:
    rows, inputs = torch.arange(2)[:, None], torch.arange(131)[None]
    a = pack_nibbles(((5 * inputs[:, :35] + 3 * rows) % 16).to(torch.uint8))
    b = pack_nibbles(((3 * inputs + 1) % 16).to(torch.uint8))
    c = (7 * inputs[:, :33] % 255 - 127).to(torch.int8)
    scale = halves(0.5, -0.25, 1.5, 2**-14).view(2, 2)
    row_scale = torch.tensor([2**-10, 1.0])
    return {
        "a": GroupedTensor(a, scale, row_scale, torch.Size((2, 35)), WeightFormat(4, 32)),
        "b": GroupedTensor(
            b,
            scale[:1],
            row_scale[1:],
            torch.Size((1, 131)),
            WeightFormat(4, 128, has_zeros=True),
            halves(7.5, 8.0),
        ),
        "c": GroupedTensor(c, scale[1:], row_scale[:1], torch.Size((1, 33)), WeightFormat(8, 32)),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("golden") / "model"
    planned = tuple(
        PlannedWeight(name, tuple(weight.shape), weight.format)
        for name, weight in weights().items()
    )
    contents = StoreContents(
        (PlannedBlock("fixed", "", planned),),
        {"model_type": "t5"},
        "t5",
        compression={"method": "nearest"},
    )
    with StoreWriter(folder, contents) as writer:
        for name, weight in weights().items():
            writer.write_weight(name, weight)
    return folder


def test_the_weights_are_these_bytes(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    assert 8 + header_bytes == 4096
    header = json.loads(content[8:4096])
    assert header.pop("__metadata__") == {"format": "pt"}
    expected = b""
    for name, ((dtype, shape), text) in TENSORS.items():
        expected += bytes(-len(expected) % 64)
        begin, end = len(expected), len(expected) + len(bytes.fromhex(text))
        assert header.pop(name) == {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        expected += bytes.fromhex(text)
    assert content[4096:] == expected
    assert all(name.startswith("__pad__.") for name in header)


def test_the_manifest_is_this_object(folder: Path) -> None:
    manifest = json.loads((folder / "martlet.json").read_text())
    assert list(manifest) == [
        "format_version",
        "family",
        "quantize",
        "tokenizer",
        "blocks",
        "files",
        "formats",
        "compression",
    ]
    assert (manifest["format_version"], manifest["quantize"]) == (2, "int4")
    assert manifest["formats"] == FORMATS
    assert manifest["compression"] == {"method": "nearest"}
    assert manifest["blocks"][0]["tensors"] == list(TENSORS)


def test_these_bytes_are_read_as_the_weights_that_they_stand_for(folder: Path) -> None:
    read = open_store(folder).block("fixed")
    for name, weight in weights().items():
        assert torch.equal(read[name].dequantize(), weight.dequantize())
    # By the formula of the page: (integer - zero) * scale * scale of the row.
    a, b, c = (read[name].dequantize() for name in "abc")
    assert a[0, 3] == (15 - 8) * 0.5 * 2**-10
    assert a[1, 34] == (13 - 8) * 2**-14
    assert b[0, 2] == (7 - 7.5) * 0.5
    assert b[0, 130] == (7 - 8) * -0.25
    assert c[0, 32] == 97 * 2**-14 * 2**-10
