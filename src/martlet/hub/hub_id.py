"""Names of models on the Hugging Face hub, checked before anything is asked of a network."""

from __future__ import annotations

import re
from dataclasses import dataclass

from martlet.errors import ModelNotFoundError

__all__ = ["MAIN", "HubId", "is_file_path", "parse_hub_id"]

MAIN = "main"
"""The branch that is meant where no revision is named."""

_MAX_CHARACTERS = 96
_MAX_REVISION_CHARACTERS = 200
_MAX_FILE_CHARACTERS = 1000
# Letters of ASCII only: nothing that a URL, a file system or a reader could take for another.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/-]*")
_WHAT = "a model of the hub is called ORG/NAME, ORG/NAME@REVISION or ORG/NAME:QUANT-OR-FILE"


@dataclass(frozen=True)
class HubId:
    """A repository of the hub, and what of it is meant.

    Attributes:
        repo: "org/name".
        revision: a branch, a tag or a commit.
        wanted: what stood behind the colon: a quantisation such as "Q4_K_M", or a GGUF file's name.
    """

    repo: str
    revision: str = MAIN
    wanted: str | None = None

    def __str__(self) -> str:
        at = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{self.repo}{at}" + ("" if self.wanted is None else f":{self.wanted}")


def parse_hub_id(text: str) -> HubId:
    """The parts of ``org/name[@revision][:quant-or-file]``.

    Raises:
        ModelNotFoundError: not such a name, or one that could mean another place than it says.
    """
    head, colon, wanted = text.partition(":")
    repo, at, revision = head.partition("@")
    problem = _repo_problem(repo)
    if problem is None and at:
        problem = _revision_problem(revision)
    if problem is None and colon and not is_file_path(wanted):
        problem = f"{wanted!r:.80} is no quantisation and no name of a file"
    if problem is not None:
        raise ModelNotFoundError(f"no model is called {text!r:.200}: {problem}; {_WHAT}")
    return HubId(repo, revision if at else MAIN, wanted if colon else None)


def is_file_path(name: object) -> bool:
    """Whether this is a relative path of plain names with slashes between, never upwards."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= _MAX_FILE_CHARACTERS
        and name.isprintable()
        and not any(character in name for character in "\\:%?#*")
        and all(
            part not in ("", ".", "..") and len(part.encode(errors="replace")) <= 255
            for part in name.split("/")
        )
    )


def _repo_problem(repo: str) -> str | None:
    parts = repo.split("/")
    if len(parts) != 2:
        return "there is nothing at that path, and it is not of the form ORG/NAME"
    if any(len(part) > _MAX_CHARACTERS for part in parts):
        return f"the hub's names have at most {_MAX_CHARACTERS} characters"
    if not all(_PART.fullmatch(part) for part in parts):
        return "the hub's names consist of letters, digits, '.', '_' and '-'"
    # "--" stands for the slash in the names of the cache's folders.
    if any(".." in part or "--" in part or part.endswith((".", "-", ".git")) for part in parts):
        return "the hub's names have no '..' and no '--', and do not end in '.', '-' or '.git'"
    return None


def _revision_problem(revision: str) -> str | None:
    if len(revision) > _MAX_REVISION_CHARACTERS:
        return f"a revision has at most {_MAX_REVISION_CHARACTERS} characters"
    sound = _REVISION.fullmatch(revision) and all(
        part not in ("", ".", "..") and not part.endswith(".lock") for part in revision.split("/")
    )
    if not sound or ".." in revision:
        return f"{revision!r:.80} is no branch, tag or commit"
    return None
