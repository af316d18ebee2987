"""Where the hub is and where its cache lies, by the environment variables of Hugging Face."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from martlet.errors import UsageError

__all__ = ["HubSettings", "find_token", "hub_settings"]

_TRUE = ("1", "ON", "YES", "TRUE")
_OFFLINE_VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


@dataclass(frozen=True)
class HubSettings:
    """What a download needs to know.

    Attributes:
        cache_dir: the hub's cache, which other programs share.
        endpoint: address of the hub or of a mirror of it, without a slash at the end.
        is_offline: whether no connection may be opened.
        timeout_seconds: how long a server may send nothing.
        tries: how often a request is made that fails without a byte of progress.
        first_wait_seconds: the pause after the first failure; it doubles with each further one.
        connections: files that are fetched at a time.
    """

    cache_dir: Path
    endpoint: str
    is_offline: bool = False
    timeout_seconds: float = 10.0
    tries: int = 6
    first_wait_seconds: float = 1.0
    connections: int = 4


def hub_settings(offline: bool | None = None) -> HubSettings:
    """The settings by the environment; ``offline`` None leaves that to HF_HUB_OFFLINE too.

    huggingface_hub reads its variables once, when it is imported; this is where Martlet imports it.

    Raises:
        UsageError: a variable has no sense.
    """
    try:
        from huggingface_hub import constants
    except ValueError as error:  # it reads numbers with int()
        raise UsageError(
            f"an environment variable of the hub is not valid: {error}; HF_HUB_DOWNLOAD_TIMEOUT "
            "and HF_HUB_ETAG_TIMEOUT are whole seconds"
        ) from error
    is_offline = constants.HF_HUB_OFFLINE or any(
        os.environ.get(name, "").upper() in _TRUE for name in _OFFLINE_VARIABLES
    )
    return HubSettings(
        cache_dir=Path(constants.HF_HUB_CACHE).expanduser().absolute(),
        endpoint=_checked_endpoint(constants.ENDPOINT),
        is_offline=is_offline if offline is None else offline,
        timeout_seconds=max(1.0, float(constants.HF_HUB_DOWNLOAD_TIMEOUT)),
    )


def find_token() -> str | None:
    """The user's token for the hub: HF_TOKEN, or the file that ``hf auth login`` wrote.

    Raises:
        UsageError: it has characters that no token has.
    """
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise UsageError(
            f"the token for the hub in HF_TOKEN or {constants.HF_TOKEN_PATH} has characters that "
            "no token has; copy it again"
        )
    return token or None


def _checked_endpoint(endpoint: str) -> str:
    problem = None
    try:
        parts = urlsplit(endpoint)
        _ = parts.port  # raises where it is no number
    except ValueError as error:
        problem = str(error)
    else:
        if parts.scheme not in ("http", "https") or not parts.hostname:
            problem = "it must begin with https:// or http:// and the name of a host"
        elif "@" in parts.netloc or parts.query or parts.fragment:
            problem = "it must have no user, no '?' and no '#'"
        elif not endpoint.isascii() or not endpoint.isprintable() or " " in endpoint:
            problem = "it has characters that no address has"
    if problem is not None:
        raise UsageError(
            f"HF_ENDPOINT is {endpoint!r:.120}: {problem}; "
            "write it as in HF_ENDPOINT=https://huggingface.co"
        )
    return endpoint.rstrip("/")
