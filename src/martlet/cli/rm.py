"""martlet rm: a model that is not needed any more."""

from __future__ import annotations

import click

from martlet.cli.options import TEXT, as_json
from martlet.cli.output import is_interactive, note, print_json, print_text
from martlet.device.size import format_bytes
from martlet.errors import UsageError

__all__ = ["command"]


@click.command("rm")
@click.argument("name", type=TEXT)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@as_json
def command(name: str, yes: bool, as_json: bool) -> None:
    """Remove the model NAME from the hub's cache or from the models directory.

    ORG/NAME is removed with all revisions, ORG/NAME@REVISION is one of them, ORG/NAME:FILE one
    GGUF file. Bytes that another revision uses stay. Bundled models and files anywhere else are
    never removed.
    """
    from martlet.hub.removing import find_removal

    removal = find_removal(name)
    size = format_bytes(removal.freed_bytes)
    if not yes:
        if not is_interactive():
            raise UsageError(f"would remove {removal.what} ({size}); say --yes to do so")
        if not click.confirm(f"Remove {removal.what} ({size}, {removal.path})?", err=True):
            note("nothing was removed")
            return
    try:
        removal.execute()
    except OSError as error:
        raise UsageError(
            f"{error.filename or removal.path} cannot be removed: {error.strerror}; "
            "check whose it is"
        ) from error
    if as_json:
        print_json({"name": name, "path": str(removal.path), "freed_bytes": removal.freed_bytes})
    else:
        print_text(f"removed {removal.what}, {size} freed")
