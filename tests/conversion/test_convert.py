"""What becomes of matrices on their way: rounded, taken over as they are, or made floats again."""

import pytest
import torch

from martlet.checkpoint.store import open_store
from martlet.compression.groups import quantize_groups
from martlet.compression.nearest import SEARCHED_RANGES
from martlet.compression.recipe import Recipe
from martlet.conversion.convert import convert
from martlet.errors import UsageError
from martlet.quantization.formats import INT8, parse_format
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 64,
    "n_positions": 16,
    "n_embd": 72,
    "n_layer": 2,
    "n_head": 2,
}
QUERY = "transformer.h.0.attn.c_attn.weight"


@pytest.fixture(scope="module")
def source(make_model):
    return make_model("gpt2", config=GPT2, tokenizer=("cpm1", {}))


def weights_of(folder):
    store = open_store(folder)
    return {
        block.prefix + name: weight
        for block in store.manifest.blocks
        for name, weight in store.block(block.name).items()
    }


def same(one, other):
    names = ("data", "scale", "zero", "row_scale")
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    pairs = [(getattr(one, name, None), getattr(other, name, None)) for name in names]
    return type(one) is type(other) and all(a is b or torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("name", ["int4", "int4-g64-asym", "int4-g128", "int8-g32"])
def test_matrices_are_rounded_to_nearest_with_ranges_searched(source, tmp_path, name):
    report = convert(source, tmp_path / "out", quantize=name)
    format = parse_format(name)
    assert report.quantize == f"int{format.bits}"
    before, after = weights_of(source), weights_of(tmp_path / "out")
    assert list(before) == list(after)
    for key, weight in before.items():
        if isinstance(after[key], GroupedTensor):
            expected = quantize_groups(weight, format, candidates=SEARCHED_RANGES)
            assert same(after[key], expected)
        else:
            assert weight.ndim == 1 or key == "transformer.wpe.weight"
            assert torch.equal(after[key], weight)
    store = open_store(tmp_path / "out")
    assert store.manifest.compression == {"method": "nearest", "recipe": {"default": format.name}}
    bits = 8 * sum(w.nbytes for w in after.values()) / sum(w.numel() for w in before.values())
    assert report.bits_per_weight == pytest.approx(bits)
    store.verify()


def test_a_recipe_mixes_formats(source, tmp_path):
    recipe = Recipe.parse("int4-g32", embedding="int8", rules=["*.h.1.mlp.*=none"])
    convert(source, tmp_path / "out", quantize=recipe)
    weights = weights_of(tmp_path / "out")
    assert isinstance(weights["transformer.wte.weight"], QuantizedTensor)
    assert isinstance(weights[QUERY], GroupedTensor)
    assert weights["transformer.h.1.mlp.c_fc.weight"].dtype == torch.float32
    account = open_store(tmp_path / "out").manifest.compression
    assert account["recipe"] == recipe.to_json()
    with pytest.raises(UsageError, match="fits no matrix"):
        convert(source, tmp_path / "no", quantize=Recipe(INT8, rules=(("*.o.weight", None),)))
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("quantize", [None, "int4-g64", "int4-g64-asym", "int8"])
def test_integers_are_taken_over_where_no_fewer_bytes_are_asked_for(source, tmp_path, quantize):
    convert(source, tmp_path / "first", quantize="int4-g64")
    report = convert(tmp_path / "first", tmp_path / "again", quantize=quantize)
    assert report.quantize == "int4"
    first, again = open_store(tmp_path / "first"), open_store(tmp_path / "again")
    assert first.manifest == again.manifest


def test_integers_are_rounded_again_where_fewer_bytes_are_asked_for(source, tmp_path):
    convert(source, tmp_path / "int8", quantize="int8")
    convert(tmp_path / "int8", tmp_path / "int4", quantize="int4-g128")
    eight, four = weights_of(tmp_path / "int8"), weights_of(tmp_path / "int4")
    expected = quantize_groups(
        eight[QUERY].dequantize(), parse_format("int4-g128"), candidates=SEARCHED_RANGES
    )
    assert same(four[QUERY], expected)
    assert open_store(tmp_path / "int4").manifest.compression == {
        "method": "nearest",
        "recipe": {"default": "int4-g128"},
        "from": {"method": "nearest", "recipe": {"default": "int8"}},
    }


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_integers_become_floats_when_none_are_asked_for(source, tmp_path, dtype):
    convert(source, tmp_path / "int4", quantize="int4-g32-asym")
    report = convert(tmp_path / "int4", tmp_path / "floats", quantize="none", dtype=dtype)
    assert report.quantize == "none"
    integers, floats = weights_of(tmp_path / "int4"), weights_of(tmp_path / "floats")
    kept = torch.float16 if dtype else torch.float32
    assert torch.equal(floats[QUERY], integers[QUERY].dequantize(kept))
    assert {weight.dtype for weight in floats.values()} == {kept}
    assert open_store(tmp_path / "floats").manifest.to_json()["format_version"] == 1


@pytest.mark.parametrize("name", ["int3", "int4-g16", "int8-asym", "INT4", ""])
def test_a_format_that_there_is_not_is_refused_with_those_that_there_are(source, tmp_path, name):
    with pytest.raises(UsageError, match=r"int8-gN, int4-gN or int4-gN-asym with N 32, 64 or 128"):
        convert(source, tmp_path / "out", quantize=name)
