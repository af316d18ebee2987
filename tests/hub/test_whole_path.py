"""From a name of the hub to an answer, in a process that has never seen the model."""

import json
import os
import subprocess
import sys

import pytest

import martlet as martlet_package

LLAMA = {
    "model_type": "llama",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
NAME = "some/tiny-llama"


@pytest.fixture(scope="module")
def folder(make_hub_folder):
    folder = make_hub_folder(config=LLAMA)
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\nA model.\n")
    (folder / "modeling_llama.py").write_text("raise SystemExit('this code was run')")
    return folder


@pytest.fixture
def run(hub, tmp_path, folder):
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    hub.add(NAME, files)
    environment = {name: value for name, value in os.environ.items() if name[:3] != "HF_"}
    environment.update(HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=hub.endpoint)

    def call(*argv, **variables):
        return subprocess.run(
            [sys.executable, "-m", "martlet.cli", *argv],
            env={**environment, **variables},
            capture_output=True,
            text=True,
            timeout=120,
            stdin=subprocess.DEVNULL,
        )

    return call


def test_a_model_answers_by_its_name_on_the_hub(hub, run, folder):
    arguments = ("write", NAME, "abc", "--max-tokens", "5", "--temperature", "0", "--json")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert f"fetching {NAME}" in done.stderr
    model = martlet_package.load(folder, device="cpu")
    assert json.loads(done.stdout)["text"] == model.write("abc", max_tokens=5, temperature=0)
    assert not hub.file_requests("modeling_llama.py")
    hub.close()
    again = run(*arguments, HF_HUB_OFFLINE="1")
    assert json.loads(again.stdout)["text"] == json.loads(done.stdout)["text"]
    assert "fetching" not in again.stderr


def test_show_tells_what_came_from_the_hub(run, folder):
    done = run("show", NAME, "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["model"] == NAME
    assert (facts["family"], facts["context_tokens"]) == ("llama", 64)
    assert (facts["quantize"], facts["loaded_as"]) == ("none", "int8")
    assert facts["licence"] == "apache-2.0"
    assert facts["has_chat_template"] is False
    assert [entry["format"] for entry in facts["formats"]] == ["bfloat16"]
