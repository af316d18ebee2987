"""Models that are taken away again: from the hub's cache or the models directory, nowhere else."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from martlet.errors import ModelNotFoundError, UsageError
from martlet.hub.cache import CachedRepo
from martlet.hub.cached import file_names
from martlet.hub.catalogue import BUNDLED, Catalogue
from martlet.hub.entries import is_gguf, is_model_folder
from martlet.hub.hub_id import MAIN, HubId, parse_hub_id
from martlet.hub.selection import choose_gguf, gguf_models
from martlet.hub.settings import hub_settings

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy, HFCacheInfo

__all__ = ["Removal", "find_removal"]


@dataclass(frozen=True)
class Removal:
    """What would be removed, and not yet is.

    Attributes:
        what: for the question before it: a model and where it lies.
        freed_bytes: what the disk gets back; bytes that another revision uses stay.
        execute: removes it.
    """

    what: str
    path: Path
    freed_bytes: int
    execute: Callable[[], None]


def find_removal(name: str) -> Removal:
    """What ``martlet rm NAME`` would remove.

    A name in the models directory, or ``ORG/NAME`` with all its revisions in the cache, one of them
    as ``ORG/NAME@REVISION``, or one GGUF file as ``ORG/NAME:QUANT-OR-FILE``.

    Raises:
        UsageError: a bundled model, a path, or something that is a link to elsewhere.
        ModelNotFoundError: there is nothing of that name.
    """
    if name in BUNDLED:
        raise UsageError(f"{name} is a part of Martlet and cannot be removed")
    models_dir = Catalogue().models_dir
    own = models_dir / name
    if name not in ("", ".", "..") and Path(name).name == name:
        if _is_there(own):
            return _own_removal(name, own)
        raise ModelNotFoundError(Catalogue().not_found(name))
    if name[:1] in ("/", ".", "~", ""):
        raise UsageError(
            f"{name!r:.200} is a path; martlet rm removes what has a name in {models_dir} or in "
            "the hub's cache, anything else is for `rm` of the shell"
        )
    return _cache_removal(parse_hub_id(name), hub_settings().cache_dir)


def _is_there(path: Path) -> bool:
    try:
        return path.is_symlink() or is_gguf(path) or (path.is_dir() and is_model_folder(path))
    except ValueError:  # no path at all
        return False


def _own_removal(name: str, path: Path) -> Removal:
    if path.is_symlink():
        # The folder that it leads to belongs to somebody else.
        return Removal(f"the link {name} in {path.parent}", path, 0, path.unlink)
    if path.is_file():
        size_bytes = path.stat().st_size
        return Removal(f"{name} in {path.parent}", path, size_bytes, path.unlink)
    size_bytes = sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    return Removal(f"{name} in {path.parent}", path, size_bytes, lambda: _remove_folder(path))


def _remove_folder(path: Path) -> None:
    """First out of sight, so that nobody finds half a model."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(8)}.removed")
    path.rename(aside)
    shutil.rmtree(aside)


def _cache_removal(hub_id: HubId, cache_dir: Path) -> Removal:
    repo = CachedRepo(cache_dir.resolve(), hub_id.repo)
    if not repo.folder.is_dir():
        raise _not_cached(hub_id, repo)
    if repo.folder.is_symlink():
        raise UsageError(
            f"{repo.folder} is a link to {repo.folder.resolve()}; remove what it leads to there"
        )
    if hub_id.wanted is None and hub_id.revision == MAIN:
        return _whole_removal(hub_id, repo.folder)
    commit = repo.commit_of(hub_id.revision)
    if commit is None or not repo.snapshot(commit).is_dir():
        raise _not_cached(hub_id, repo)
    if hub_id.wanted is not None:
        return _gguf_removal(repo, hub_id, repo.snapshot(commit))
    strategy = _checked(_scan(repo.folder).delete_revisions(commit), repo.folder)
    return Removal(
        f"{hub_id} from the hub's cache",
        repo.snapshot(commit),
        strategy.expected_freed_size,
        strategy.execute,
    )


def _whole_removal(hub_id: HubId, folder: Path) -> Removal:
    """All revisions, and what an interrupted pull has left."""

    def execute() -> None:
        info = _scan(folder)
        commits = [
            revision.commit_hash
            for repo in info.repos
            if repo.repo_path == folder
            for revision in repo.revisions
        ]
        if commits:
            # The library also gives back what the cache shares between repositories.
            _checked(info.delete_revisions(*commits), folder).execute()
        if folder.is_dir():  # damaged or without a whole revision: the library left it
            shutil.rmtree(folder)

    size_bytes = sum(file.lstat().st_size for file in folder.rglob("*") if not file.is_dir())
    return Removal(f"{hub_id.repo} from the hub's cache", folder, size_bytes, execute)


def _gguf_removal(repo: CachedRepo, hub_id: HubId, folder: Path) -> Removal:
    """The links of one revision, and the bytes if no other link leads to them."""
    files = [folder / name for name in choose_gguf(gguf_models(file_names(folder)), hub_id).files]
    others = {
        _blob_of(path)
        for path in repo.folder.glob("snapshots/**/*")
        if path not in files and path.is_symlink()
    }
    unused = {
        blob for path in files if (blob := _blob_of(path)) not in others and blob.exists()
    } - set(files)
    freed_bytes = sum(blob.stat().st_size for blob in unused)
    # Of no revision; the library then gives back what the cache shares between repositories.
    strategy = replace(_scan(repo.folder).delete_revisions(), blobs=frozenset(unused))
    _checked(strategy, repo.folder)

    def execute() -> None:
        for path in files:
            path.unlink()
        strategy.execute()

    return Removal(f"{hub_id} from the hub's cache", files[0], freed_bytes, execute)


def _blob_of(path: Path) -> Path:
    """What a link of a snapshot leads to; the file itself where the cache has no links."""
    if not path.is_symlink():
        return path
    return Path(os.path.normpath(path.parent / os.readlink(path)))


def _scan(folder: Path) -> HFCacheInfo:
    from huggingface_hub import scan_cache_dir

    return scan_cache_dir(folder.parent)


def _checked(strategy: DeleteCacheStrategy, folder: Path) -> DeleteCacheStrategy:
    """The strategy, if nothing of it lies outside the repository's folder.

    A link in a snapshot may lead anywhere, and the library would remove what it leads to.
    """
    for path in (*strategy.blobs, *strategy.refs, *strategy.snapshots, *strategy.repos):
        if folder not in (path, *path.parents):
            raise UsageError(
                f"{path} belongs to {folder} by a link, but lies elsewhere; nothing was removed"
            )
    return strategy


def _not_cached(hub_id: HubId, repo: CachedRepo) -> ModelNotFoundError:
    return ModelNotFoundError(
        f"{hub_id} is not in the cache {repo.folder.parent}; martlet list shows what is"
    )
