"""Which model to run, where none was named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from martlet.cli.options import LoadOptions
from martlet.cli.output import is_interactive
from martlet.cli.progress import working
from martlet.device.size import format_bytes
from martlet.errors import MartletError, UsageError

if TYPE_CHECKING:
    from martlet.hub.catalogue import ModelEntry

__all__ = ["choose_model"]


def choose_model(loading: LoadOptions) -> str:
    """Let the person choose among the models that are here and fit; Enter takes the first.

    Raises:
        UsageError: nobody is there to choose, or no model is.
    """
    with working("looking at the models that are here"):
        entries = [entry for entry in _in_order() if _fits(entry, loading)]
    if not entries:
        raise UsageError(
            "no model is here that fits this machine; name one, or get one with martlet pull NAME"
        )
    click.echo("models that are here and fit this machine:", err=True)
    width = max(len(entry.name) for entry in entries)
    for number, entry in enumerate(entries, start=1):
        size = "" if entry.size_bytes is None else format_bytes(entry.size_bytes)
        click.echo(f"  {number}  {entry.name:<{width}}  {entry.task or '':<5}  {size}", err=True)
    if not is_interactive():
        raise UsageError("MODEL is missing; name one of these, or another: martlet run MODEL")
    return _asked([entry.name for entry in entries])


def _asked(names: list[str]) -> str:
    while True:
        click.echo(f"model (1-{len(names)}, Enter for {names[0]}): ", nl=False, err=True)
        try:
            typed = input().strip()
        except EOFError:
            click.echo(err=True)
            raise click.Abort from None
        if not typed:
            return names[0]
        if typed in names:
            return typed
        if typed.isdecimal() and 1 <= int(typed) <= len(names):
            return names[int(typed) - 1]
        click.echo(f"{typed!r:.40} is none of them", err=True)


def _in_order() -> list[ModelEntry]:
    """What was fetched or made comes before what is bundled, and what can talk before others."""
    from martlet.hub.catalogue import Catalogue

    entries = [entry for entry in Catalogue().entries() if entry.problem is None]
    return sorted(entries, key=lambda entry: (entry.origin == "bundled", entry.task != "chat"))


def _fits(entry: ModelEntry, loading: LoadOptions) -> bool:
    from martlet.api.loading import plan

    try:
        plan(entry.path, **loading.arguments())  # a path is never fetched
    except MartletError:
        return False
    return True
