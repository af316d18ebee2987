"""Which folder a model's name stands for."""

from __future__ import annotations

import difflib
import importlib.resources
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import platformdirs

from martlet.checkpoint.names import MANIFEST_NAME
from martlet.errors import MartletError, ModelNotFoundError
from martlet.models.family import TASKS_OF_FAMILY, Task

__all__ = ["BUNDLED", "Catalogue", "ModelEntry", "list_models", "resolve"]

BUNDLED = ("cpm1-mini", "cpm2-mini", "eva-mini")
"""Names of the models that come with the package."""


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be loaded by name.

    ``problem`` says why it cannot be loaded after all; then the fields from the files are None.
    """

    name: str
    path: Path
    origin: Literal["bundled", "local"]
    family: str | None = None
    task: Task | None = None
    quantize: str | None = None
    size_bytes: int | None = None
    problem: str | None = None


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
        """The folder of a model: a bundled name, a name in the models directory, or a path.

        A bundled name comes first; ``./NAME`` is a folder of that name.

        Raises:
            ModelNotFoundError: there is none; says what is near, and what to do for a hub id.
        """
        name = str(model)
        if isinstance(model, str) and name in BUNDLED:
            return self._bundled_folder(name)
        path = Path(name).expanduser()
        # "" would be the current folder; os.path.exists says no where a name is no path at all.
        if name and os.path.isdir(path):
            return path
        if name and os.path.exists(path):
            raise ModelNotFoundError(
                f"{path} is a file and not a model folder; "
                "make one from a checkpoint with martlet convert SRC DST"
            )
        if _is_plain(name) and os.path.isdir(self.models_dir / name):
            return self.models_dir / name
        raise ModelNotFoundError(self._not_found(name))

    def entries(self) -> list[ModelEntry]:
        """All models that have a name, the bundled ones first."""
        entries = [
            _entry(name, self._bundled_dir / name, "bundled")
            for name in BUNDLED
            if (self._bundled_dir / name / MANIFEST_NAME).is_file()
        ]
        if self.models_dir.is_dir():
            folders = sorted(path for path in self.models_dir.iterdir() if path.is_dir())
            entries += [
                _entry(path.name, path, "local")
                for path in folders
                if (path / MANIFEST_NAME).is_file() and path.name not in BUNDLED
            ]
        return entries

    def _bundled_folder(self, name: str) -> Path:
        folder = self._bundled_dir / name
        if not (folder / MANIFEST_NAME).is_file():
            raise ModelNotFoundError(
                f"{name} is bundled with Martlet, but its files are missing from {folder}; "
                "install the package again"
            )
        return folder

    def _not_found(self, name: str) -> str:
        if _is_hub_id(name):
            return (
                f"there is no folder {name} here, and Martlet does not download models; "
                "download the checkpoint yourself and run martlet convert FOLDER NAME; "
                f"bundled models are {', '.join(BUNDLED)}"
            )
        names = [*BUNDLED, *(entry.name for entry in self.entries())]
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return (
            f"no model is called {name!r:.200}: {hint}bundled models are {', '.join(BUNDLED)}; "
            f"others are paths of model folders, or names of folders in {self.models_dir}"
        )


def resolve(model: str | Path) -> Path:
    """The folder of a model, with the usual directories: see ``Catalogue.resolve``."""
    return Catalogue().resolve(model)


def list_models() -> list[ModelEntry]:
    """All models that have a name, in the usual directories: see ``Catalogue.entries``."""
    return Catalogue().entries()


def _is_plain(name: str) -> bool:
    return name not in ("", ".", "..") and Path(name).name == name


def _is_hub_id(name: str) -> bool:
    organisation, slash, rest = name.partition("/")
    return bool(slash) and _is_plain(organisation) and _is_plain(rest)


def _entry(name: str, path: Path, origin: Literal["bundled", "local"]) -> ModelEntry:
    # Imports torch; finding a folder does not need it.
    from martlet.checkpoint.store import open_store

    try:
        store = open_store(path)
    except MartletError as error:
        return ModelEntry(name, path, origin, problem=str(error))
    return ModelEntry(
        name=name,
        path=path,
        origin=origin,
        family=store.family,
        task=TASKS_OF_FAMILY[store.family][0],
        quantize=store.quantize,
        size_bytes=sum(entry.size_bytes for entry in store.manifest.files.values()),
    )
