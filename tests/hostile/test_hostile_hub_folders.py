"""Folders in the hub's layout that are damaged, or made by somebody who means harm."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from martlet.api.opening import open_model
from martlet.errors import ModelFileError

INDEX = "model.safetensors.index.json"
LLAMA = {
    "model_type": "llama",
    "vocab_size": 48,
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


@pytest.fixture
def folder(make_hub_folder, tmp_path):
    """A copy of a sound folder, to be damaged."""
    copy = tmp_path / "model"
    shutil.copytree(make_hub_folder(), copy)
    return copy


def shards(folder):
    return sorted(folder.glob("*.safetensors"))


def rewrite(folder, change):
    """Change the tensors of the first shard."""
    path = shards(folder)[0]
    tensors = safetensors.torch.load_file(path)
    change(tensors)
    safetensors.torch.save_file(tensors, path)


def reindex(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def reconfigure(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def refused(folder, match):
    """The error that opening raises, which takes less than a second of work."""
    started = time.process_time()
    with pytest.raises(ModelFileError, match=match) as caught:
        open_model(folder)
    assert time.process_time() - started < 1
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_sound_folder_opens(folder):
    assert open_model(folder).files.quantize == "none"


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_a_shard_that_is_cut_off(folder, keep):
    path = shards(folder)[1]
    path.write_bytes(path.read_bytes()[:keep])
    refused(folder, "byte")


def test_a_shard_that_is_missing(folder):
    shards(folder)[1].unlink()
    refused(folder, "names model-00002-of-00002.safetensors, which is missing")


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "..", "a\\b", "", 7])
def test_an_index_that_names_what_is_no_file_of_the_folder(folder, name):
    shutil.copy(shards(folder)[0], folder.parent / "secret.safetensors")
    reindex(folder, lambda table: table.update({next(iter(table)): name}))
    refused(folder, "not a (plain )?file name")


def test_a_shard_that_is_a_link_out_of_the_folder(folder):
    path = shards(folder)[0]
    outside = folder.parent / "outside.safetensors"
    shutil.move(path, outside)
    path.symlink_to(outside)
    refused(folder, "leads out of the folder")


def test_a_shard_that_is_no_file(folder):
    path = shards(folder)[0]
    path.unlink()
    os.mkfifo(path)
    refused(folder, "missing")


def test_a_tensor_in_two_shards(folder):
    name = next(iter(safetensors.torch.load_file(shards(folder)[1])))
    rewrite(folder, lambda tensors: tensors.update({name: torch.zeros(2)}))
    refused(folder, f"two shards hold {name}")


def test_a_tensor_that_is_missing(folder):
    rewrite(folder, lambda tensors: tensors.pop("transformer.wte.weight"))
    refused(folder, r"has no tensor transformer\.wte\.weight")


@pytest.mark.parametrize("shape", [(29, 31), (28, 32), (29 * 32,), (29, 32, 1), (0, 32), ()])
def test_a_shape_that_does_not_fit_the_configuration(folder, shape):
    table = torch.zeros(shape, dtype=torch.bfloat16)
    rewrite(folder, lambda tensors: tensors.update({"transformer.wte.weight": table}))
    refused(folder, r"wte\.weight has the shape")


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool, torch.uint8])
def test_integers_where_floats_belong(folder, dtype):
    table = torch.zeros((29, 32), dtype=dtype)
    rewrite(folder, lambda tensors: tensors.update({"transformer.wte.weight": table}))
    refused(folder, f"wte.weight is {dtype}, expected a float type")


def test_floats_of_8_bits(folder):
    table = torch.zeros((29, 32)).to(torch.float8_e4m3fn)
    rewrite(folder, lambda tensors: tensors.update({"transformer.wte.weight": table}))
    refused(folder, "dtype 'F8_E4M3' is not one of")


def test_a_weight_that_is_not_finite_ends_loading(folder):
    table = torch.full((29, 32), float("nan"), dtype=torch.bfloat16)
    rewrite(folder, lambda tensors: tensors.update({"transformer.wte.weight": table}))
    opened = open_model(folder)
    from martlet.engine.load_options import LoadOptions

    planned = opened.plan(LoadOptions(device="cpu"))
    with pytest.raises(ModelFileError, match=r"wte\.weight: row 0 holds"):
        opened.load("m", planned)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "not valid JSON"),
        ("[]", "not a JSON object"),
        ("null", "not a JSON object"),
        ("{}", "model_type"),
        ('{"model_type": ["gpt2"]}', "model_type"),
        ('{"model_type": "gpt2", "model_type": "gpt2"}', "duplicate key"),
        ('{"a":' * 100_000, "not valid JSON"),
        ("[" * 1_000_000, "not valid JSON"),
        ('{"model_type": "gpt2", "n_layer": ' + "9" * 10_000 + "}", "n_layer|valid JSON"),
        ("\xff\xfe".encode("latin-1"), "not valid JSON"),
    ],
)
def test_a_configuration_that_is_none(folder, text, match):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(folder, match)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e400", "-0.0", "9" * 4000])
def test_numbers_that_are_no_sizes(folder, number):
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"n_layer": 2', f'"n_layer": {number}'))
    refused(folder, "n_layer")


def test_a_configuration_that_is_huge(folder):
    with (folder / "config.json").open("wb") as file:
        file.truncate(1 << 34)
    refused(folder, "the limit is")


@pytest.mark.parametrize("field", ["n_layer", "n_embd", "vocab_size", "n_head", "n_positions"])
@pytest.mark.parametrize("value", [-1, 0, 10**9, 10**30, 2.5, True, "12", [2], {"n": 2}])
def test_sizes_that_no_model_has(folder, field, value):
    reconfigure(folder, **{field: value})
    refused(folder, field)


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "num_attention_heads"])
@pytest.mark.parametrize("value", [-1, 10**9])
def test_sizes_that_no_llama_has(folder, field, value):
    (folder / "config.json").write_text(json.dumps({**LLAMA, field: value}))
    refused(folder, field)


def test_the_most_layers_that_are_allowed_are_told_by_what_is_missing(folder):
    reconfigure(folder, n_layer=1024)
    refused(folder, r"has no tensor transformer\.h\.2\.")


def test_a_nested_configuration_of_no_known_kind(folder):
    reconfigure(folder, text_config={"model_type": "nothing"})
    refused(folder, "nothing")


@pytest.mark.parametrize("value", ["gptq", [], {"quant_method": "fp8"}, {"quant_method": None}, {}])
def test_a_quantization_config_of_no_known_kind(folder, value):
    reconfigure(folder, quantization_config=value)
    refused(folder, "quantization_config|quant_method")


def test_an_index_with_too_many_tensors(folder):
    table = {f"t{number}": "x" for number in range(200_001)}
    (folder / INDEX).write_text(json.dumps({"weight_map": table}))
    refused(folder, "the limit is")


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"": "x"}}', "7"])
def test_an_index_that_is_none(folder, text):
    (folder / INDEX).write_text(text)
    refused(folder, "weight_map|JSON object|tensor name")


def test_a_command_ends_with_exit_code_6_and_one_line(folder):
    rewrite(folder, lambda tensors: tensors.pop("transformer.wte.weight"))
    done = subprocess.run(
        [sys.executable, "-m", "martlet", "run", str(folder), "hello"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    assert done.returncode == 6
    assert "has no tensor transformer.wte.weight" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_memory_stays_bounded_whatever_a_configuration_asks_for(folder):
    """In a process of its own, whose address space could not hold the model that is asked for."""
    reconfigure(folder, n_layer=1024, n_embd=1 << 24, n_head=1, vocab_size=1 << 24)
    program = (
        "import resource, sys\n"
        "from martlet.api.opening import open_model\n"
        "from martlet.device.probe import peak_rss_bytes\n"
        "before = peak_rss_bytes()\n"
        "try:\n"
        "    open_model(sys.argv[1])\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, peak_rss_bytes() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )
    name, grown = done.stdout.split()
    assert name == "ModelFileError"
    assert int(grown) < 200 << 20
