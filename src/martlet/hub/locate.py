"""Where a model lies, whatever it was called by; what is not here is fetched from the hub."""

from __future__ import annotations

import os
from pathlib import Path

from martlet.errors import ModelNotFoundError
from martlet.hub.cached import find_cached
from martlet.hub.catalogue import Catalogue
from martlet.hub.hub_id import HubId, parse_hub_id
from martlet.hub.pull import Announce, Progress, PullPlan, pull
from martlet.hub.settings import HubSettings, hub_settings

__all__ = ["locate", "pull_model", "short_name"]


def locate(
    model: str | Path,
    *,
    offline: bool | None = None,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> Path:
    """The folder or the GGUF file of a model.

    In this order: a bundled name; a path; a name in the models directory; ``ORG/NAME[@REVISION]``
    or ``ORG/NAME:QUANT-OR-FILE`` of the hub. A model of the hub that is in the cache is taken from
    there without asking whether the hub has a newer one; otherwise it is fetched.

    Args:
        model: what the user calls it.
        offline: open no connection; None = as HF_HUB_OFFLINE says.
        progress: called with bytes that are there, bytes in all, and a file's name.
        announce: called with what will be fetched before the first byte of it.

    Raises:
        ModelNotFoundError: there is no such model, or it would have to be fetched offline.
        DownloadError: it cannot be fetched, or does not verify.
        DiskFullError: there is no room for it.
    """
    catalogue = Catalogue()
    path = catalogue.find(model)
    if path is not None:
        return path
    name = str(model)
    if "/" not in name.partition(":")[0] or name[0] in "/.~":
        raise ModelNotFoundError(catalogue.not_found(name))
    hub_id = parse_hub_id(name)
    settings = hub_settings(offline)
    cached = find_cached(settings.cache_dir, hub_id, needs_tokenizer=not settings.is_offline)
    if cached is not None:
        return cached
    _require_network(hub_id, settings)
    return pull(hub_id, settings, progress=progress, announce=announce).path


def pull_model(
    model: str,
    *,
    progress: Progress | None = None,
    announce: Announce | None = None,
) -> PullPlan:
    """Have a model of the hub in the cache as the hub has it now; what is there is not fetched.

    Raises:
        ModelNotFoundError: no name of the hub, nothing of that name there, or HF_HUB_OFFLINE.
        DownloadError, DiskFullError, ModelFileError: as ``locate``.
    """
    hub_id = parse_hub_id(model)
    settings = hub_settings()
    _require_network(hub_id, settings)
    return pull(hub_id, settings, progress=progress, announce=announce)


def short_name(model: str) -> str:
    """What messages and clients call a model: the last part of its path or of its hub name."""
    head, colon, wanted = model.partition(":")
    if os.path.exists(model) or "/" not in head:
        return Path(os.path.abspath(model)).name or model
    name = Path(head.partition("@")[0]).name
    return f"{name}:{Path(wanted).name}" if colon else name


def _require_network(hub_id: HubId, settings: HubSettings) -> None:
    if settings.is_offline:
        raise ModelNotFoundError(
            f"{hub_id} is not in the cache {settings.cache_dir}, and nothing may be fetched with "
            f"--offline or HF_HUB_OFFLINE; run `martlet pull {hub_id}` where there is a network"
        )
