import shutil
from pathlib import Path

import pytest

from martlet.errors import ModelNotFoundError
from martlet.hub.catalogue import BUNDLED, Catalogue, list_models


@pytest.fixture
def catalogue(tmp_path, tiny_cpm2):
    """A package with one of its three models, and a user with one good and one broken folder."""
    bundled, models = tmp_path / "zoo", tmp_path / "models"
    shutil.copytree(tiny_cpm2, bundled / "cpm2-mini")
    shutil.copytree(tiny_cpm2, models / "mine")
    (models / "broken").mkdir(parents=True)
    (models / "broken" / "martlet.json").write_text("{")
    (models / "no-model").mkdir()
    return Catalogue(models_dir=models, bundled_dir=bundled)


def test_a_bundled_name_is_a_folder_of_the_package(catalogue, tmp_path):
    assert catalogue.resolve("cpm2-mini") == tmp_path / "zoo" / "cpm2-mini"


def test_a_folder_is_itself_and_a_dot_slash_hides_no_folder(catalogue, tiny_cpm2, tmp_path):
    assert catalogue.resolve(tiny_cpm2) == tiny_cpm2
    assert catalogue.resolve(str(tiny_cpm2)) == tiny_cpm2
    folder = tmp_path / "models" / "cpm2-mini"
    folder.mkdir()
    assert catalogue.resolve(folder) == folder


def test_a_name_is_looked_for_in_the_models_directory(catalogue, tmp_path):
    assert catalogue.resolve("mine") == tmp_path / "models" / "mine"


@pytest.mark.parametrize("name", ["..", "../models/mine", "/nonexistent"])
def test_a_name_cannot_leave_the_models_directory(catalogue, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path / "models")
    if name == "/nonexistent":
        with pytest.raises(ModelNotFoundError):
            catalogue.resolve(name)
    else:
        assert catalogue.resolve(name) == Path(name)  # a path like any other


def test_an_unknown_name_lists_what_there_is_and_what_is_near(catalogue):
    with pytest.raises(ModelNotFoundError) as caught:
        catalogue.resolve("cpm2-mni")
    message = str(caught.value)
    assert "did you mean cpm2-mini?" in message
    for name in BUNDLED:
        assert name in message
    with pytest.raises(ModelNotFoundError, match="did you mean mine"):
        catalogue.resolve("mines")


def test_a_name_of_the_hub_is_not_looked_for_here(catalogue):
    assert catalogue.find("somebody/some-model") is None
    with pytest.raises(ModelNotFoundError, match="ORG/NAME on the hub"):
        catalogue.resolve("somebody/some-model")


def test_a_file_is_told_to_be_converted(catalogue, tmp_path):
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(b"x")
    with pytest.raises(ModelNotFoundError, match=r"is a file .* martlet convert"):
        catalogue.resolve(str(file))


def test_a_gguf_file_is_a_model_by_its_suffix_or_its_first_bytes(catalogue, tmp_path):
    named, blob = tmp_path / "models" / "small-Q4_K_M.gguf", tmp_path / "0123abcd"
    named.write_bytes(b"")
    blob.write_bytes(b"GGUF\3\0\0\0")
    assert catalogue.resolve(str(blob)) == blob
    assert catalogue.resolve("small-Q4_K_M.gguf") == named
    (entry,) = (entry for entry in catalogue.entries() if entry.path == named)
    assert (entry.name, entry.quantize, entry.size_bytes) == ("small-Q4_K_M.gguf", "Q4_K_M", 0)


def test_a_folder_as_the_hub_has_them_is_listed_by_its_config(catalogue, tmp_path):
    folder = tmp_path / "models" / "downloaded"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert "downloaded" not in {entry.name for entry in catalogue.entries()}
    (folder / "model.safetensors").write_bytes(b"12345")
    (entry,) = (entry for entry in catalogue.entries() if entry.name == "downloaded")
    assert (entry.family, entry.quantize, entry.size_bytes) == ("llama", "none", 5)
    assert entry.problem is None
    assert entry.task == "write"
    (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    (entry,) = (entry for entry in catalogue.entries() if entry.name == "downloaded")
    assert entry.task == "chat"
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    (entry,) = (entry for entry in catalogue.entries() if entry.name == "downloaded")
    assert "unheard-of" in entry.problem
    (folder / "config.json").write_text("[")
    (entry,) = (entry for entry in catalogue.entries() if entry.name == "downloaded")
    assert "config.json" in entry.problem


@pytest.mark.parametrize("name", ["", "a\0b", "a" * 5000, "\udcff"])
def test_a_name_that_is_no_path_is_not_found(catalogue, name, monkeypatch):
    # An unset variable of a shell, "", is not the folder that Python's Path makes of it.
    monkeypatch.chdir(catalogue.models_dir / "mine")
    with pytest.raises(ModelNotFoundError, match="no model is called"):
        catalogue.resolve(name)


def test_a_bundled_model_without_its_files_says_so(catalogue):
    with pytest.raises(ModelNotFoundError, match="install the package again"):
        catalogue.resolve("eva-mini")


def test_models_are_listed_and_a_broken_one_says_what_is_wrong(catalogue):
    entries = {entry.name: entry for entry in catalogue.entries()}
    assert list(entries) == ["cpm2-mini", "broken", "mine"]
    bundled = entries["cpm2-mini"]
    assert (bundled.origin, bundled.family, bundled.task) == ("bundled", "cpm2", "fill")
    assert bundled.quantize == "int8"
    assert bundled.size_bytes > 1 << 20
    assert bundled.problem is None
    assert entries["mine"].origin == "local"
    assert entries["broken"].problem
    assert entries["broken"].family is None


def test_the_usual_directories_can_be_listed():
    assert {entry.name for entry in list_models() if entry.origin == "bundled"} <= set(BUNDLED)
