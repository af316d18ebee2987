"""The command line: find the verb, run it, turn every failure into a line and a code.

Nothing heavy is imported here: a verb's module is imported when the verb is called, and the
module imports torch only when it runs. So `martlet --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import click

from martlet import __version__
from martlet.cli import failure

__all__ = ["VERBS", "VerbGroup", "run_command", "verbs"]

# Verb -> the line that `martlet --help` shows. The module is martlet.cli.VERB.
VERBS = {
    "run": "Answer with the model's natural task, once or line by line.",
    "fill": "Fill the blanks of a text.",
    "write": "Continue an opening.",
    "chat": "Talk with a dialogue model.",
    "serve": "Serve models over HTTP, with a web app.",
    "pull": "Fetch a model from the Hugging Face hub.",
    "list": "List the models that are here (alias: ls).",
    "show": "Show what a model consists of.",
    "rm": "Remove a model that was fetched or converted.",
    "plan": "Show where the weights of a model would live.",
    "bench": "Measure the speed of a model on this machine.",
    "perplexity": "Measure how well a model predicts a text.",
    "convert": "Convert a published checkpoint into a model folder.",
    "quantize": "Compress a model to 4 or 8 bits, calibrated on a text.",
    "adapt": "Train back into a compressed model what it has lost.",
    "doctor": "Check what this machine has and whether everything is in order.",
    "tour": "See the three bundled models at work.",
}
_ALIASES = {"ls": "list"}


class VerbGroup(click.Group):
    """Verbs whose modules are imported when they are called."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """`martlet` alone shows the help."""
        if not args:
            click.echo(ctx.get_help())
            ctx.exit(0)
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All verbs, in the order of ``VERBS``."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb; None where there is none of that name."""
        verb = _ALIASES.get(cmd_name, cmd_name)
        if verb not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"martlet.cli.{verb}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing them, which click's own method would do."""
        with formatter.section("Verbs"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a verb; a reader that left early (``| head``) is no failure."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            # The interpreter flushes stdout once more at exit, which must find something open.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(0)
        except KeyboardInterrupt as error:
            # click would end the line once more, which has been done where it was needed.
            raise click.Abort from error
        return result


@click.group(
    cls=VerbGroup,
    subcommand_metavar="VERB [ARGS]...",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`martlet VERB --help` tells more. Exit codes: 0 ok, 2 usage, 3 model not found, "
    "4 not enough memory, 5 download or disk, 6 bad model file, 130 Ctrl-C.",
)
@click.version_option(__version__, prog_name="martlet", message="%(prog)s %(version)s")
@click.option("--debug", is_flag=True, help="Show the traceback of a failure.")
def verbs(debug: bool) -> None:
    """Run language models that are bigger than the machine.

    MODEL is a bundled name (cpm1-mini, cpm2-mini, eva-mini), a model folder or GGUF file, or
    ORG/NAME on the Hugging Face hub, which is fetched when it is first used.
    """


def run_command(argv: Sequence[str]) -> int:
    """Run one command line and give its exit code; failures go to stderr as one line."""
    try:
        code = verbs.main(args=list(argv), prog_name="martlet", standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if failure.wants_traceback(argv, error):
            traceback.print_exception(error)
        message, code = failure.describe(error)
        click.echo(message, err=True)
    return code if isinstance(code, int) else 0
