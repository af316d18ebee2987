"""Entry of the command line. As little as possible is imported before Ctrl-C is taken care of."""

from __future__ import annotations

import sys

from martlet.cli import process

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    process.take_interrupts()
    process.open_standard_streams()
    # An answer must not die of a terminal that cannot show a character.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    from martlet.cli.verbs import run_command

    code = run_command(sys.argv[1:])
    process.ignore_interrupts()
    sys.exit(code)


if __name__ == "__main__":
    main()
