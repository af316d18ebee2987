"""Which folder a model's name stands for."""

from __future__ import annotations

import difflib
import importlib.resources
import os
from pathlib import Path

import platformdirs

from martlet.checkpoint.names import MANIFEST_NAME
from martlet.errors import ModelNotFoundError
from martlet.hub.cached_models import cached_entries, cached_repos
from martlet.hub.entries import (
    ModelEntry,
    describe_folder,
    describe_gguf,
    is_gguf,
    is_model_folder,
)

__all__ = ["BUNDLED", "Catalogue", "ModelEntry", "list_models", "resolve"]

BUNDLED = ("cpm1-mini", "cpm2-mini", "eva-mini")
"""Names of the models that come with the package."""


class Catalogue:
    """The bundled models, and the model folders in the user's models directory.

    Args:
        models_dir: where the user keeps model folders; None = the usual place of this system.
        bundled_dir: where the package keeps its own; None = inside the package.
    """

    def __init__(self, models_dir: Path | None = None, bundled_dir: Path | None = None) -> None:
        data_dir = Path(platformdirs.user_data_dir("martlet", appauthor=False))
        self.models_dir = data_dir / "models" if models_dir is None else models_dir
        # The weights are mapped into memory, so the package must lie in a real folder.
        package_dir = Path(str(importlib.resources.files("martlet")))
        self._bundled_dir = package_dir / "zoo" if bundled_dir is None else bundled_dir

    def resolve(self, model: str | Path) -> Path:
        """The folder or GGUF file of a model that is here without the hub's cache: see ``find``.

        Raises:
            ModelNotFoundError: there is none; says what is near.
        """
        path = self.find(model)
        if path is None:
            raise ModelNotFoundError(self.not_found(str(model)))
        return path

    def find(self, model: str | Path) -> Path | None:
        """A bundled name, a path of a folder or GGUF file, or a name in the models directory.

        A bundled name comes first; ``./NAME`` is a folder of that name. None where it is none of
        these.

        Raises:
            ModelNotFoundError: a bundled model whose files are missing, or a file of another kind.
        """
        name = str(model)
        if isinstance(model, str) and name in BUNDLED:
            return self._bundled_folder(name)
        path = Path(name).expanduser()
        # "" would be the current folder; os.path.exists says no where a name is no path at all.
        if name and (os.path.isdir(path) or is_gguf(path)):
            return path
        if name and os.path.exists(path):
            raise ModelNotFoundError(
                f"{path} is a file and neither a model folder nor GGUF; give the folder that has "
                "config.json and safetensors, or make one of it with martlet convert SRC DST"
            )
        own = self.models_dir / name
        if _is_plain(name) and (os.path.isdir(own) or is_gguf(own)):
            return own
        return None

    def entries(self) -> list[ModelEntry]:
        """The bundled models, then those in the models directory."""
        entries = [
            describe_folder(name, self._bundled_dir / name, "bundled")
            for name in BUNDLED
            if (self._bundled_dir / name / MANIFEST_NAME).is_file()
        ]
        if self.models_dir.is_dir():
            for path in sorted(self.models_dir.iterdir()):
                if path.name in BUNDLED:
                    continue
                if is_gguf(path):
                    entries.append(describe_gguf(path.name, [path], "local"))
                elif is_model_folder(path):
                    entries.append(describe_folder(path.name, path, "local"))
        return entries

    def _bundled_folder(self, name: str) -> Path:
        folder = self._bundled_dir / name
        if not (folder / MANIFEST_NAME).is_file():
            raise ModelNotFoundError(
                f"{name} is bundled with Martlet, but its files are missing from {folder}; "
                "install the package again"
            )
        return folder

    def not_found(self, name: str) -> str:
        """The message for a name that leads nowhere: what is near, and what there is."""
        if name.startswith((".", "~", os.sep)):
            return (
                f"no model is called {name!r:.200}: there is nothing at that path; give that of a "
                "model folder or GGUF file"
            )
        names = [*BUNDLED, *(entry.name for entry in self.entries()), *cached_repos()]
        # "qwen3-8b" is near "Qwen/Qwen3-8B".
        spellings = {
            spelling.lower(): known for known in names for spelling in (known, _last(known))
        }
        near = difflib.get_close_matches(name.lower(), spellings, n=1)
        hint = f"did you mean {spellings[near[0]]}? " if near else ""
        return (
            f"no model is called {name!r:.200}: {hint}bundled models are {', '.join(BUNDLED)}; "
            "others are paths of model folders and GGUF files, names in "
            f"{self.models_dir}, and ORG/NAME on the hub"
        )


def resolve(model: str | Path) -> Path:
    """Where a model lies that is not of the hub, in the usual directories."""
    return Catalogue().resolve(model)


def list_models() -> list[ModelEntry]:
    """All models that have a name: bundled, in the models directory, and in the hub's cache."""
    return [*Catalogue().entries(), *cached_entries()]


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and Path(name).name == name
