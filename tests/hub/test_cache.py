import errno
import os
import time

import pytest
from filelock import FileLock

from martlet.hub.cache import CachedRepo, repo_of_folder

ETAG = "a" * 64
COMMIT = "1" * 40


@pytest.fixture
def repo(tmp_path):
    return CachedRepo(tmp_path / "cache", "some/model")


class GivenUpError(Exception):
    pass


def give_up(seconds):
    raise GivenUpError


def test_a_lock_is_the_one_that_the_hubs_own_library_takes(repo, tmp_path):
    path = tmp_path / "cache" / ".locks" / "models--some--model" / f"{ETAG}.lock"
    path.parent.mkdir(parents=True)
    with FileLock(path), pytest.raises(GivenUpError), repo.lock(ETAG, give_up):
        pass
    with repo.lock(ETAG, give_up), pytest.raises(TimeoutError):
        FileLock(path).acquire(timeout=0)
    with repo.lock(ETAG, give_up), repo.lock("b" * 64, give_up):
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_no_lock(repo, tmp_path):
    removed = []

    def wait(seconds):
        if not removed:
            # Somebody cleans up while we wait, and the holder of the old file is still at work.
            path = tmp_path / "cache" / ".locks" / "models--some--model" / f"{ETAG}.lock"
            path.unlink()
            removed.append(path)
        time.sleep(0.01)

    with repo.lock(ETAG, give_up), repo.lock(ETAG, wait):
        assert removed[0].exists()


@pytest.mark.parametrize(
    ("stored", "commit"),
    [(COMMIT, COMMIT), (COMMIT + "\n", COMMIT), ("../../x", None), ("", None), ("\xff", None)],
)
def test_a_branch_stands_at_a_commit_or_nowhere(repo, stored, commit):
    path = repo.folder / "refs" / "main"
    path.parent.mkdir(parents=True)
    path.write_text(stored, encoding="latin-1")
    assert repo.commit_of("main") == commit
    assert repo.commit_of("other") is None


def test_a_short_commit_must_be_the_only_one_that_begins_so(repo):
    for commit in ("1" * 40, "1" * 39 + "2", "abcdef0" + "3" * 33):
        repo.snapshot(commit).mkdir(parents=True)
    assert repo.commit_of("abcdef0") == "abcdef0" + "3" * 33
    assert repo.commit_of("1" * 10) is None
    assert repo.commit_of("abcdef") is None


def test_where_links_are_not_possible_the_file_itself_is_shown(repo, monkeypatch):
    repo.blob(ETAG).parent.mkdir(parents=True)
    repo.blob(ETAG).write_bytes(b"bytes")

    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "symlink", refuse)
    repo.link(COMMIT, "model.safetensors", ETAG)
    shown = repo.snapshot(COMMIT) / "model.safetensors"
    assert shown.read_bytes() == b"bytes"
    assert not shown.is_symlink()
    assert repo.has_file(COMMIT, "model.safetensors", ETAG, 5)
    assert not repo.has_file(COMMIT, "model.safetensors", ETAG, 6)


def test_folders_of_the_cache_tell_whose_they_are():
    assert repo_of_folder("models--some--model") == "some/model"
    assert repo_of_folder("models--gpt2") is None
    assert repo_of_folder("datasets--some--texts") is None
