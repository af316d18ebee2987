import pytest

from martlet.errors import ModelFileError, ModelNotFoundError
from martlet.hub.hub_id import parse_hub_id
from martlet.hub.selection import gguf_models, select_files

QUANTS = [f"tiny-{quant}.gguf" for quant in ("Q2_K", "Q4_K_S", "Q4_K_M", "Q8_0", "BF16")]


def selected(names, model="a/b"):
    return select_files(names, parse_hub_id(model))


def test_shards_are_fetched_and_other_forms_of_the_weights_are_not():
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    others = [
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "onnx/model.onnx",
        "original/params.json",
        "tf_model.h5",
    ]
    index = "model.safetensors.index.json"
    found = selected(["config.json", "tokenizer.model", index, *shards, *others])
    assert found.files == ("config.json", index, "tokenizer.model", *shards)
    assert found.left_out == tuple(sorted(others))
    assert found.gguf is None


def test_safetensors_come_before_gguf_unless_a_file_is_named():
    names = ["config.json", "model.safetensors", *QUANTS]
    assert "model.safetensors" in selected(names).files
    assert selected(names, "a/b:q8_0").files == ("tiny-Q8_0.gguf",)


@pytest.mark.parametrize(
    ("model", "file"),
    [
        ("a/b", "tiny-Q4_K_M.gguf"),
        ("a/b:Q4_K_M", "tiny-Q4_K_M.gguf"),
        ("a/b:q4_k_m", "tiny-Q4_K_M.gguf"),
        ("a/b:bf16", "tiny-BF16.gguf"),
        ("a/b:tiny-Q2_K", "tiny-Q2_K.gguf"),
        ("a/b:tiny-Q2_K.gguf", "tiny-Q2_K.gguf"),
    ],
)
def test_a_gguf_is_chosen_by_a_word_of_its_name_or_all_of_it(model, file):
    assert selected(QUANTS, model).files == (file,)


def test_without_a_name_it_is_q4_k_m_then_q8_0_then_the_only_one():
    assert selected(["x-Q8_0.gguf", "x-Q2_K.gguf"]).files == ("x-Q8_0.gguf",)
    assert selected(["README.md", "x-Q2_K.gguf"]).files == ("x-Q2_K.gguf",)
    with pytest.raises(ModelNotFoundError, match=r"none of them is the obvious one: x-F16, x-Q2_K"):
        selected(["x-F16.gguf", "x-Q2_K.gguf"])


@pytest.mark.parametrize("wanted", ["Q4_K", "Q4", "Q5_0", "Q4_K_M.bin", "other.gguf"])
def test_what_is_no_word_of_a_name_lists_what_there_is(wanted):
    with pytest.raises(ModelNotFoundError) as caught:
        selected(QUANTS, f"a/b:{wanted}")
    assert f"no GGUF models for '{wanted}'" in str(caught.value)
    assert "tiny-Q4_K_S" in str(caught.value)


def test_two_models_of_one_quantisation_are_told_apart_by_their_names():
    names = ["seven-Q4_K_M.gguf", "thirteen-Q4_K_M.gguf"]
    with pytest.raises(ModelNotFoundError, match="has 2 GGUF models"):
        selected(names)
    assert selected(names, "a/b:seven-q4_k_m").files == ("seven-Q4_K_M.gguf",)


def test_a_model_in_parts_is_one_and_only_whole():
    parts = [f"BF16/x-BF16-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    (model,) = gguf_models(parts)
    assert model.name == "BF16/x-BF16"
    assert selected([*parts, "x-Q4_K_M.gguf"], "a/b:bf16").files == tuple(parts)
    with pytest.raises(ModelNotFoundError, match="parts of BF16/x-BF16 are missing"):
        selected(parts[:2], "a/b:bf16")


def test_projectors_and_calibration_are_no_models():
    names = ["mmproj-model-f16.gguf", "x.imatrix.gguf", "x-Q4_0.gguf"]
    assert selected(names).files == ("x-Q4_0.gguf",)


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["config.json", "pytorch_model.bin"], "pickles"),
        (["model.safetensors"], "no config.json"),
        (["config.json", "consolidated.safetensors"], "no shards and no GGUF"),
        (["adapter_config.json", "adapter_model.safetensors"], "adapter_config.json"),
        ([], "only nothing"),
    ],
)
def test_a_repository_without_a_model_says_what_is_missing(names, says):
    with pytest.raises(ModelFileError, match=says):
        selected(names)


def test_a_repository_of_safetensors_has_no_gguf_to_name():
    with pytest.raises(ModelNotFoundError, match="there is no GGUF file"):
        selected(["config.json", "model.safetensors"], "a/b:Q4_K_M")
