"""The formats and methods of the table of compression, and folders that are made by them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from martlet.checkpoint.manifest import MANIFEST_NAME
from martlet.quantization.formats import parse_format

__all__ = ["FORMATS", "METHODS", "Recipe", "compressed_folder", "planned_recipes"]

CALIBRATED = ("gptq", "scaled", "scaled+gptq")
METHODS = ("float", "int8", "nearest", *CALIBRATED, "adapted")
FORMATS = ("int4-g32", "int4-g128", "int4-g32-asym", "int4-g128-asym")
_ADAPTED_FROM = "scaled+gptq"


@dataclass(frozen=True)
class Recipe:
    """A format of the weights, and how the integers were chosen.

    ``format`` is "float" or as in "int4-g64", "int4-g64:head=int8:embedding=int8": what stands
    after a colon is an option of ``martlet quantize``.
    """

    format: str
    method: str | None

    @property
    def group_size(self) -> int | None:
        """Inputs that share a scale; None for floats and for whole rows."""
        format = parse_format(self.format.partition(":")[0])
        return None if format is None else format.group_size

    @property
    def is_made_while_loading(self) -> bool:
        """Whether it needs no folder of its own."""
        return self.method in (None, "nearest") and ":" not in self.format

    @property
    def arguments(self) -> list[str]:
        """The format as ``martlet quantize`` takes it."""
        format, *others = self.format.split(":")
        return ["--format", format, *(f"--{option}" for option in others)]


def planned_recipes(methods: Sequence[str], formats: Sequence[str] | None) -> Iterator[Recipe]:
    """The rows of the table in its order, those of the methods and formats that are wanted."""
    for method in METHODS:
        if method not in methods:
            continue
        if method == "float":
            yield Recipe("float", None)
        elif method == "int8":
            yield Recipe("int8", "nearest")
        else:
            yield from (Recipe(format, method) for format in formats or FORMATS)


def compressed_folder(folder: Path, recipe: Recipe, data: Path, args: Namespace) -> Path:
    """The model folder of a recipe below ``args.work``, made now unless it is there."""
    assert recipe.method is not None
    name = f"{folder.name}-{recipe.format}-{recipe.method}"
    made = args.work / name.replace(":", "-").replace("=", "-")
    if (made / MANIFEST_NAME).is_file():
        return made
    if recipe.method == "adapted":
        start = compressed_folder(folder, Recipe(recipe.format, _ADAPTED_FROM), data, args)
        command = ["adapt", start, made, "--teacher", folder, "--data", data]
        command += shlex.split(args.adapt_options)
    else:
        command = ["quantize", folder, made, "--method", recipe.method]
        command += [*recipe.arguments, "--calibration", data]
        command += shlex.split(args.quantize_options)
    # In a process of its own: its memory is given back whole, and its progress is its own.
    arguments = [sys.executable, "-m", "martlet", *map(str, command), "--device", args.device]
    subprocess.run(arguments, check=True)
    return made
