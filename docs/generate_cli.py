"""Write docs/cli.md from the help texts of the command line; `make docs` runs this.

`--check` changes nothing and fails when the page is not what the code says.
"""

import sys
from pathlib import Path

import click

from martlet.cli.verbs import VERBS, verbs

PAGE = Path(__file__).parent / "cli.md"
_WIDTH = 88
_HEAD = """# The command line

This page is made from the help texts by `make docs`; change those, not this.
Results go to stdout, progress and timings to stderr. What can be typed at the prompt of `run` and
`chat`, and how scripts use them: [Talking with a model](chat.md).
"""


def render() -> str:
    """The whole page."""
    context = click.Context(
        verbs, info_name="martlet", terminal_width=_WIDTH, **verbs.context_settings
    )
    parts = [_HEAD, _section("martlet", verbs, context)]
    for verb in VERBS:
        command = verbs.get_command(context, verb)
        assert command is not None
        inner = click.Context(command, info_name=verb, parent=context, terminal_width=_WIDTH)
        parts.append(_section(f"martlet {verb}", command, inner))
    return "\n".join(parts)


def _section(title: str, command: click.Command, context: click.Context) -> str:
    return f"## {title}\n\n```text\n{command.get_help(context)}\n```\n"


def main() -> None:
    """Write the page, or with --check compare it."""
    page = render()
    if sys.argv[1:] == ["--check"]:
        # Words only: versions of click break lines differently.
        if not PAGE.exists() or PAGE.read_text(encoding="utf-8").split() != page.split():
            sys.exit("docs/cli.md is not what the code says; run `make docs`")
    else:
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
