"""The models in the hub's cache, for lists: what is whole, and what a pull would go on with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from martlet.device.size import format_bytes
from martlet.hub.cache import repo_of_folder
from martlet.hub.cached import file_names, missing_files
from martlet.hub.entries import ModelEntry, describe_folder, describe_gguf
from martlet.hub.hub_id import MAIN
from martlet.hub.selection import gguf_models
from martlet.hub.settings import hub_settings

if TYPE_CHECKING:
    from huggingface_hub import CachedRevisionInfo

__all__ = ["cached_entries", "cached_repos"]

_SHORT_COMMIT = 12


def cached_repos() -> list[str]:
    """The names of all repositories in the cache, without a look at what they hold."""
    folders = sorted(path.name for path in hub_settings().cache_dir.glob("models--*"))
    return [repo for folder in folders if (repo := repo_of_folder(folder)) is not None]


def cached_entries() -> list[ModelEntry]:
    """All models in the cache that Martlet may load, and pulls that were interrupted."""
    cache_dir = hub_settings().cache_dir
    if not cache_dir.is_dir():
        return []
    from huggingface_hub import scan_cache_dir

    entries = [
        entry
        for repo in sorted(scan_cache_dir(cache_dir).repos, key=lambda repo: repo.repo_id)
        if repo.repo_type == "model"
        for revision in sorted(repo.revisions, key=lambda revision: revision.commit_hash)
        for entry in _revision_entries(repo.repo_id, revision)
    ]
    named = {entry.name.partition(":")[0].partition("@")[0] for entry in entries}
    for folder in sorted(cache_dir.glob("models--*")):
        repo_name = repo_of_folder(folder.name)
        if repo_name is not None and repo_name not in named:
            entries += _interrupted(repo_name, folder)
    return entries


def _revision_entries(repo: str, revision: CachedRevisionInfo) -> Iterator[ModelEntry]:
    """A folder of safetensors is one model, every GGUF file is one."""
    refs = sorted(revision.refs)
    at = "" if MAIN in refs else f"@{refs[0] if refs else revision.commit_hash[:_SHORT_COMMIT]}"
    folder = revision.snapshot_path
    names = file_names(folder)
    if not missing_files(folder, names):
        yield describe_folder(f"{repo}{at}", folder, "hub")
    for model in gguf_models(names):
        if model.is_whole():
            files = [folder / name for name in model.files]
            yield describe_gguf(f"{repo}{at}:{Path(model.name).name}", files, "hub")


def _interrupted(repo: str, folder: Path) -> Iterator[ModelEntry]:
    parts = [path for path in folder.glob("blobs/*.incomplete") if path.is_file()]
    if parts:
        arrived_bytes = sum(path.stat().st_size for path in folder.glob("blobs/*"))
        yield ModelEntry(
            repo,
            folder,
            "hub",
            problem=f"the pull was interrupted, {format_bytes(arrived_bytes)} are here; "
            f"martlet pull {repo} goes on, martlet rm {repo} removes it",
        )
