import dataclasses
import socket

import pytest

from martlet.cli import serve
from martlet.errors import ModelNotFoundError
from martlet.hub import cached_models
from martlet.hub import locate as locating
from martlet.hub.hub_id import parse_hub_id
from martlet.hub.locate import locate, short_name
from martlet.hub.pull import pull

from .conftest import MODEL_FILES
from .hub_server import LARGE_BYTES

NAME = "some/model"
GGUF_FILES = {
    f"tiny-{quant}.gguf": b"GGUF" + quant.encode() * LARGE_BYTES for quant in ("Q8_0", "Q4_K_M")
}


@pytest.fixture(autouse=True)
def environment(settings, monkeypatch):
    """What the environment would say is what the test says."""

    def hub_settings(offline=None):
        is_offline = settings.is_offline if offline is None else offline
        return dataclasses.replace(settings, is_offline=is_offline)

    monkeypatch.setattr(locating, "hub_settings", hub_settings)


@pytest.fixture
def no_sockets(monkeypatch):
    """From now on any socket is a failure of the test."""

    def refuse(*args, **kwargs):
        raise AssertionError("a socket was opened")

    def forbid():
        monkeypatch.setattr(socket, "socket", refuse)
        monkeypatch.setattr(socket, "create_connection", refuse)
        monkeypatch.setattr(socket, "getaddrinfo", refuse)

    return forbid


def test_a_model_of_the_hub_is_fetched_once_and_found_from_then_on(hub, no_sockets):
    hub.add(NAME, MODEL_FILES)
    reports = []
    path = locate(NAME, progress=lambda *report: reports.append(report))
    assert (path / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]
    assert reports[-1][0] == reports[-1][1]
    no_sockets()
    assert locate(NAME) == path
    assert locate(NAME, offline=True) == path
    assert locate(f"{NAME}@{path.name}") == path
    assert locate(f"{NAME}@{path.name[:8]}") == path


def test_offline_a_model_that_is_not_here_is_not_found(no_sockets):
    no_sockets()
    with pytest.raises(ModelNotFoundError, match=r"not in the cache .*`martlet pull some/model`"):
        locate(NAME, offline=True)


def test_a_new_revision_waits_for_a_pull(hub, settings):
    repository = hub.add(NAME, MODEL_FILES)
    first = locate(NAME)
    repository.commit = "2" * 40
    assert locate(NAME) == first
    assert pull(parse_hub_id(NAME), settings).path != first
    assert locate(NAME) != first


def test_what_another_program_fetched_in_part_is_completed(hub, settings, no_sockets):
    hub.add(NAME, MODEL_FILES)
    path = locate(NAME)
    (path / "tokenizer.json").unlink()
    assert locate(NAME, offline=True) == path  # weights are enough where nothing can be fetched
    assert locate(NAME) == path
    assert (path / "tokenizer.json").is_file()
    (path / "model.safetensors").unlink()
    with pytest.raises(ModelNotFoundError):
        locate(NAME, offline=True)
    assert (locate(NAME) / "model.safetensors").is_file()


def test_a_link_whose_bytes_are_gone_is_no_file(hub):
    hub.add(NAME, MODEL_FILES)
    path = locate(NAME)
    (path / "model.safetensors").resolve().unlink()
    assert (locate(NAME) / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]


@pytest.mark.parametrize(
    "index", [b"{", b"[]", b'{"weight_map": {"x": "model-00002-of-00002.safetensors"}}']
)
def test_shards_that_the_index_names_must_be_there(hub, index):
    repository = hub.add(
        NAME,
        {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "model.safetensors.index.json": index,
            "model-00001-of-00002.safetensors": b"1" * 2000,
        },
    )
    path = locate(NAME)
    with pytest.raises(ModelNotFoundError):
        locate(NAME, offline=True)
    repository.files["model.safetensors.index.json"] = (
        b'{"weight_map": {"x": "model-00001-of-00002.safetensors"}}'
    )
    repository.commit = "2" * 40
    fixed = locate(NAME)
    assert fixed != path
    assert locate(NAME, offline=True) == fixed


def test_a_gguf_file_is_a_path_of_its_own_name(hub, no_sockets):
    hub.add(NAME, GGUF_FILES)
    path = locate(f"{NAME}:q8_0")
    assert path.name == "tiny-Q8_0.gguf"
    assert path.read_bytes() == GGUF_FILES["tiny-Q8_0.gguf"]
    assert not hub.file_requests("tiny-Q4_K_M.gguf")
    assert locate(f"{NAME}:Q4_K_M").name == "tiny-Q4_K_M.gguf"
    no_sockets()
    assert locate(f"{NAME}:Q8_0") == path
    assert locate(NAME).name == "tiny-Q4_K_M.gguf"


def test_a_path_and_a_bundled_name_come_before_the_hub(hub, tmp_path, monkeypatch, tiny_cpm1):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "model").symlink_to(tiny_cpm1)
    assert str(locate(NAME)) == NAME
    assert locate("cpm1-mini").name == "cpm1-mini"
    assert not hub.seen


@pytest.mark.parametrize(
    "name", ["../x/y", "a/b/c", "%2e%2e/x", "a/b\0c", "a\\b/c", "a/" + "b" * 10_000, "./a/b", "~/x"]
)
def test_a_bad_name_is_refused_before_any_socket(name, no_sockets):
    no_sockets()
    with pytest.raises(ModelNotFoundError, match="no model is called"):
        locate(name)


def test_a_name_that_is_nothing_says_what_is_near():
    with pytest.raises(ModelNotFoundError, match=r"did you mean eva-mini\? .*ORG/NAME"):
        locate("eva-mni")


def test_half_a_name_of_a_model_in_the_cache_says_the_whole(settings, monkeypatch):
    monkeypatch.setattr(cached_models, "hub_settings", lambda: settings)
    (settings.cache_dir / "models--Qwen--Qwen3-8B").mkdir(parents=True)
    with pytest.raises(ModelNotFoundError, match=r"did you mean Qwen/Qwen3-8B\?"):
        locate("qwen3-8b")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen3-8B"),
        ("Qwen/Qwen3-8B@v1/x", "Qwen3-8B"),
        ("Qwen/Qwen3-8B-GGUF:Q4_K_M", "Qwen3-8B-GGUF:Q4_K_M"),
        ("a/b:BF16/x.gguf", "b:x.gguf"),
        ("cpm1-mini", "cpm1-mini"),
        ("/models/mine", "mine"),
    ],
)
def test_a_model_is_called_by_the_last_part_of_its_name(model, name):
    assert short_name(model) == name


def test_a_server_serves_what_was_fetched_by_its_short_name(hub, monkeypatch):
    """A GGUF file keeps its own name: the bytes behind the link have none."""
    hub.add(NAME, MODEL_FILES)
    hub.add("some/quants", GGUF_FILES)
    options = {"slots": 1}
    folder, file = serve._models((NAME, "some/quants:Q8_0"), options)
    assert (folder.name, file.name) == ("model", "quants:Q8_0")
    assert folder.folder == str(locate(NAME).resolve())
    assert file.folder.endswith("/tiny-Q8_0.gguf")
    monkeypatch.chdir(folder.folder)
    (here,) = serve._models((".",), options)
    assert here.name == folder.folder.rpartition("/")[2]
