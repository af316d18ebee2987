import pytest
import torch

from martlet.checkpoint.planned import PlannedWeight
from martlet.compression.recipe import Recipe, bits_per_weight
from martlet.errors import UsageError
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT4, INT8, named_format, parse_format

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 96,
    "n_positions": 16,
    "n_embd": 64,
    "n_layer": 4,
    "n_head": 2,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 96,
    "d_model": 64,
    "d_kv": 32,
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}


def formats(recipe, config):
    specs = load_architecture(config).block_specs()
    return {
        block.prefix + spec.name: format.name
        for block in specs
        for spec in block.tensors
        if (format := recipe.format_of(block.prefix + spec.name, spec, block, specs))
    }


def test_every_matrix_and_nothing_else_takes_the_default():
    specs = load_architecture(T5).block_specs()
    matrices = {b.prefix + s.name for b in specs for s in b.tensors if s.kind != "other"}
    found = formats(Recipe.parse("int4-g64"), T5)
    assert set(found) == matrices
    assert set(found.values()) == {"int4-g64"}


def test_head_embedding_and_edges_have_formats_of_their_own():
    recipe = Recipe.parse("int4-g128", head="int8", embedding="int8-g64", edges="int4-g32-asym")
    found = formats(recipe, T5)
    assert found["lm_head.weight"] == "int8"
    assert found["shared.weight"] == "int8-g64"
    wi = "block.{}.layer.{}.DenseReluDense.wi_0.weight"
    assert found["encoder." + wi.format(0, 1)] == "int4-g32-asym"
    assert found["encoder." + wi.format(1, 1)] == "int4-g128"
    assert found["encoder." + wi.format(2, 1)] == "int4-g32-asym"
    assert found["decoder." + wi.format(0, 2)] == "int4-g32-asym"


@pytest.mark.parametrize(
    ("head", "embedding"), [("int8", None), (None, "int8"), ("int4-g32", "int8")]
)
def test_a_table_that_is_embedding_and_head_takes_the_wider_format(head, embedding):
    recipe = Recipe.parse("int4-g128", head=head, embedding=embedding)
    assert formats(recipe, GPT2)["transformer.wte.weight"] == "int8"


def test_the_first_rule_that_fits_decides_before_everything_else():
    recipe = Recipe.parse(
        "int4",
        edges="int8-g32",
        rules=["*.h.1.*=none", "*.c_proj.weight=int8", "*.mlp.c_proj.weight=int4-g64"],
    )
    found = formats(recipe, GPT2)
    assert not any(".h.1." in name for name in found)
    assert found["transformer.h.0.mlp.c_proj.weight"] == "int8"
    assert found["transformer.h.0.mlp.c_fc.weight"] == "int8-g32"
    assert found["transformer.h.2.mlp.c_fc.weight"] == "int4-g32"
    recipe.require_matches(load_architecture(GPT2).block_specs())
    assert recipe.to_json() == {
        "default": "int4-g32",
        "edges": "int8-g32",
        "rules": ["*.h.1.*=none", "*.c_proj.weight=int8", "*.mlp.c_proj.weight=int4-g64"],
    }


def test_a_rule_for_norms_does_not_make_them_integers():
    assert not any("ln_" in name for name in formats(Recipe(INT8, rules=(("*", INT4),)), GPT2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "int3"}, "format is 'int3'.*int4-gN-asym with N 32, 64 or 128"),
        ({"format": "int8", "head": "none"}, "head is 'none'"),
        ({"format": "int8", "rules": ["*.weight"]}, "is not PATTERN=FORMAT"),
        ({"format": "int8", "rules": ["=int8"]}, "is not PATTERN=FORMAT"),
        ({"format": "int8", "rules": ["*=int4-g16"]}, "the format of '\\*' is 'int4-g16'"),
    ],
)
def test_what_is_no_recipe_is_refused_by_name(options, message):
    with pytest.raises(UsageError, match=message):
        Recipe.parse(**options)


def test_a_rule_that_fits_nothing_is_refused():
    recipe = Recipe.parse("int4", rules=["*.o_proj.weight=int8"])
    with pytest.raises(UsageError, match=r"o_proj.*fits no matrix.*transformer\.wte\.weight"):
        recipe.require_matches(load_architecture(GPT2).block_specs())


@pytest.mark.parametrize("name", ["int8", "int8-g64", "int4-g32", "int4-g128-asym"])
def test_bits_of_a_weight_count_scales_and_floats(name):
    matrix = PlannedWeight("w", (64, 256), parse_format(name))
    norm = PlannedWeight("n", (256,), torch.float16)
    assert bits_per_weight([matrix]) == 8 * named_format(name).nbytes(64, 256) / (64 * 256)
    both = (matrix.nbytes + 512) * 8 / (64 * 256 + 256)
    assert bits_per_weight([matrix, norm]) == both
