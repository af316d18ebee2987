import dataclasses
import io
import shutil

import pytest

from martlet.cli import rm
from martlet.cli.verbs import run_command
from martlet.errors import ModelNotFoundError, UsageError
from martlet.hub import removing
from martlet.hub.cache import CachedRepo
from martlet.hub.catalogue import Catalogue
from martlet.hub.hub_id import parse_hub_id
from martlet.hub.pull import pull
from martlet.hub.removing import find_removal

from .conftest import MODEL_FILES, WEIGHTS

NAME = "some/model"


@pytest.fixture(autouse=True)
def environment(settings, monkeypatch):
    monkeypatch.setattr(
        removing, "hub_settings", lambda: dataclasses.replace(settings, is_offline=True)
    )


@pytest.fixture
def two_revisions(hub, settings):
    """Commits 1... and 2..., which differ in config.json and share the weights."""
    repository = hub.add(NAME, MODEL_FILES)
    repository.tags["v1"] = repository.commit
    pull(parse_hub_id(f"{NAME}@v1"), settings)
    repository.files["config.json"] = b'{"model_type": "llama", "vocab_size": 9}'
    repository.commit = "2" * 40
    return pull(parse_hub_id(NAME), settings)


def test_a_model_goes_with_all_that_the_cache_has_of_it(two_revisions, settings):
    removal = find_removal(NAME)
    folder = CachedRepo(settings.cache_dir, NAME).folder
    assert removal.path == folder
    assert removal.freed_bytes >= len(WEIGHTS)
    assert folder.is_dir()  # nothing happens before it is asked for
    removal.execute()
    assert not folder.exists()
    with pytest.raises(ModelNotFoundError, match="martlet list"):
        find_removal(NAME)


def test_bytes_that_another_revision_uses_stay(two_revisions, settings):
    removal = find_removal(f"{NAME}@v1")
    assert removal.freed_bytes == len(MODEL_FILES["config.json"])
    removal.execute()
    assert (two_revisions.path / "model.safetensors").read_bytes() == WEIGHTS
    repo = CachedRepo(settings.cache_dir, NAME)
    assert repo.commit_of("v1") is None
    assert not repo.snapshot("1" * 40).exists()
    find_removal(f"{NAME}@{'2' * 12}").execute()
    assert not any(settings.cache_dir.glob("models--*/blobs/*"))


def test_one_gguf_file_goes_and_the_others_stay(hub, settings):
    files = {f"x-{quant}.gguf": b"GGUF" + quant.encode() * 1000 for quant in ("Q4_0", "Q8_0")}
    hub.add(NAME, files)
    for quant in ("Q4_0", "Q8_0"):
        plan = pull(parse_hub_id(f"{NAME}:{quant}"), settings)
    removal = find_removal(f"{NAME}:q4_0")
    assert removal.freed_bytes == len(files["x-Q4_0.gguf"])
    removal.execute()
    assert [path.name for path in plan.path.parent.iterdir()] == ["x-Q8_0.gguf"]
    assert [path.read_bytes() for path in settings.cache_dir.glob("models--*/blobs/*")] == [
        files["x-Q8_0.gguf"]
    ]
    with pytest.raises(ModelNotFoundError):
        find_removal(f"{NAME}:q4_0")


def test_an_interrupted_pull_can_be_removed(settings):
    repo = CachedRepo(settings.cache_dir, NAME)
    repo.incomplete("a" * 64).parent.mkdir(parents=True)
    repo.incomplete("a" * 64).write_bytes(b"12345")
    removal = find_removal(NAME)
    assert removal.freed_bytes == 5
    removal.execute()
    assert not repo.folder.exists()


def test_a_link_that_leads_out_of_the_cache_removes_nothing_there(
    two_revisions, settings, tmp_path
):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    snapshot = CachedRepo(settings.cache_dir, NAME).snapshot("1" * 40)
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(precious)
    with pytest.raises(UsageError, match="lies elsewhere; nothing was removed"):
        find_removal(f"{NAME}@v1")
    find_removal(NAME).execute()
    assert precious.read_text() == "mine"
    assert not CachedRepo(settings.cache_dir, NAME).folder.exists()


def test_a_folder_of_the_cache_that_is_a_link_is_left_alone(settings, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    settings.cache_dir.mkdir()
    CachedRepo(settings.cache_dir, NAME).folder.symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        find_removal(NAME)


def test_a_model_in_the_models_directory_goes_and_a_link_only_itself(tiny_cpm1):
    models_dir = Catalogue().models_dir
    models_dir.mkdir(parents=True)
    shutil.copytree(tiny_cpm1, models_dir / "copy")
    (models_dir / "link").symlink_to(tiny_cpm1)
    (models_dir / "x.gguf").write_bytes(b"GGUF")
    find_removal("copy").execute()
    find_removal("link").execute()
    find_removal("x.gguf").execute()
    assert not list(models_dir.iterdir())
    assert (tiny_cpm1 / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["eva-mini", "/etc", "./here", "~/models/x", "", "../x"])
def test_bundled_models_and_paths_are_not_for_it(name):
    with pytest.raises(UsageError):
        find_removal(name)


@pytest.mark.parametrize("name", ["..", "no-model", "a/../b", "a/b/c", "x\0", "models--a--b"])
def test_what_is_no_model_is_not_found(name, settings):
    Catalogue().models_dir.mkdir(parents=True)
    (Catalogue().models_dir / "no-model").mkdir()
    with pytest.raises((ModelNotFoundError, UsageError)):
        find_removal(name)
    assert (Catalogue().models_dir / "no-model").is_dir()


@pytest.mark.parametrize(("answer", "is_left"), [("n\n", True), ("\n", True), ("y\n", False)])
def test_on_a_terminal_the_verb_asks_first(monkeypatch, capsys, tiny_cpm1, answer, is_left):
    models_dir = Catalogue().models_dir
    models_dir.mkdir(parents=True)
    (models_dir / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(rm, "is_interactive", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert run_command(["rm", "x.gguf"]) == 0
    shown = capsys.readouterr()
    assert f"Remove x.gguf in {models_dir} (4 B" in shown.err
    assert (models_dir / "x.gguf").exists() == is_left
    assert ("nothing was removed" in shown.err) == is_left
    assert ("removed x.gguf" in shown.out) != is_left
