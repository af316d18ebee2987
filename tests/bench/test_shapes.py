import math

import pytest

from martlet.bench.shapes import SHAPES, find_shape
from martlet.errors import ModelFileError, UsageError
from martlet.models.config import load_architecture

# As published: CPM-1 in its repository; CPM-2 and EVA counted from the released configurations;
# Llama 3 8B, Llama 2 7B, T5 11B and Qwen3 as the sizes of the released checkpoints say.
PARAMETERS = {
    "cpm2-11b": 11_087_097_856,
    "cpm1": 2_597_073_920,
    # 2,841,044,992 with a table of two roles that generation does not read.
    "eva": 2_841_044_992 - 2 * 2048,
    "llama-8b": 8_030_261_248,
    "llama-7b": 6_738_415_616,
    "t5-11b": 11_307_321_344,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}


def test_every_shape_has_a_known_number_of_parameters():
    assert set(SHAPES) == set(PARAMETERS)


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_as_many_parameters_as_the_published_model(name):
    blocks = load_architecture(SHAPES[name].config).block_specs()
    tensors = [tensor for block in blocks for tensor in block.tensors]
    assert sum(math.prod(tensor.shape) for tensor in tensors) == PARAMETERS[name]


@pytest.mark.parametrize("name", SHAPES)
def test_no_matrix_of_a_shape_needs_padding_to_tiles(name):
    # Where it did, more would be streamed than the weights that a step is said to read.
    for block in load_architecture(SHAPES[name].config).block_specs():
        for tensor in block.tensors:
            if tensor.kind != "other":
                assert (tensor.shape[0] % 16, tensor.shape[1] % 32) == (0, 0), tensor.name


def test_a_config_file_is_a_shape_too(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"model_type": "gpt2", "n_embd": 32}', encoding="utf-8")
    shape = find_shape(str(path))
    assert (shape.name, shape.family) == (str(path), "gpt2")
    assert shape.config["n_embd"] == 32


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        (None, UsageError, "cannot be read"),
        ("{", ModelFileError, "not JSON"),
        ("[]", ModelFileError, "no JSON object"),
    ],
)
def test_a_config_file_that_is_none_is_refused(tmp_path, content, error, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(error, match=message):
        find_shape(str(path))


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(UsageError, match="cpm2-11b, cpm1, eva"):
        find_shape("cpm3")
