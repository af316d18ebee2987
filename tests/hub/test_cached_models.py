import json

import pytest
from huggingface_hub import hf_hub_download

from martlet.checkpoint.shards import read_shard_index
from martlet.hub import cached_models
from martlet.hub.cache import CachedRepo
from martlet.hub.cached import find_cached
from martlet.hub.cached_models import cached_entries
from martlet.hub.hub_id import parse_hub_id
from martlet.hub.pull import pull

from .conftest import MODEL_FILES, WEIGHTS

NAME = "some/model"


@pytest.fixture(autouse=True)
def environment(settings, monkeypatch):
    monkeypatch.setattr(cached_models, "hub_settings", lambda: settings)


def entries():
    return {entry.name: entry for entry in cached_entries()}


def test_without_a_cache_there_is_nothing():
    assert cached_entries() == []


def test_models_of_the_cache_are_listed_by_the_names_that_they_are_called_by(hub, settings):
    repository = hub.add(NAME, MODEL_FILES)
    repository.tags["v1"] = repository.commit
    pull(parse_hub_id(f"{NAME}@v1"), settings)
    repository.commit = "2" * 40
    pull(parse_hub_id(NAME), settings)
    repository.commit = "3" * 40
    repository.tags = {"3" * 40: "3" * 40}
    pull(parse_hub_id(f"{NAME}@{'3' * 40}"), settings)
    files = {f"x-{quant}.gguf": b"GGUF" + quant.encode() * 1000 for quant in ("Q4_0", "Q8_0")}
    hub.add("other/quants", files)
    for quant in ("Q4_0", "Q8_0"):
        pull(parse_hub_id(f"other/quants:{quant}"), settings)
    found = entries()
    assert list(found) == [
        "other/quants:x-Q4_0",
        "other/quants:x-Q8_0",
        f"{NAME}@v1",
        NAME,
        f"{NAME}@{'3' * 12}",
    ]
    assert found[NAME].size_bytes == len(WEIGHTS)
    assert (found[NAME].family, found[NAME].quantize) == ("llama", "none")
    quantised = found["other/quants:x-Q8_0"]
    assert (quantised.quantize, quantised.size_bytes) == ("Q8_0", len(files["x-Q8_0.gguf"]))
    for name, entry in found.items():
        hub_id = parse_hub_id(name)
        path = find_cached(settings.cache_dir, hub_id, needs_tokenizer=True)
        assert path == entry.path, name


def test_an_interrupted_pull_says_how_to_go_on(settings):
    repo = CachedRepo(settings.cache_dir, NAME)
    repo.incomplete("a" * 64).parent.mkdir(parents=True)
    repo.incomplete("a" * 64).write_bytes(b"12345")
    problem = entries()[NAME].problem
    assert "5 B are here" in problem
    assert f"martlet pull {NAME} goes on" in problem


def test_what_the_hubs_own_library_has_fetched_is_found(hub, settings, monkeypatch):
    hub.add(NAME, MODEL_FILES)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", True)
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        path = hf_hub_download(
            NAME, name, cache_dir=settings.cache_dir, endpoint=settings.endpoint, token=False
        )
    found = find_cached(settings.cache_dir, parse_hub_id(NAME), needs_tokenizer=True)
    assert path == str(found / "model.safetensors")
    assert entries()[NAME].size_bytes == len(WEIGHTS)
    hub.seen.clear()
    plan = pull(parse_hub_id(NAME), settings)
    assert plan.missing_bytes == len(MODEL_FILES["README.md"])
    assert not hub.file_requests("model.safetensors")


def test_shards_whose_bytes_the_cache_shares_between_repositories_are_read(tmp_path):
    """Newer versions of the hub's library keep large files once for the whole cache."""
    cache = tmp_path / "hub"
    folder = cache / "models--a--b" / "snapshots" / ("1" * 40)
    folder.mkdir(parents=True)
    name = "model-00001-of-00001.safetensors"
    shared = cache / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    shared.write_bytes(b"x")
    blob = folder.parent.parent / "blobs" / ("c" * 64)
    blob.parent.mkdir()
    blob.symlink_to(shared)
    (folder / name).symlink_to(f"../../blobs/{blob.name}")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"x": name}}))
    assert read_shard_index(index) == {"x": folder / name}
