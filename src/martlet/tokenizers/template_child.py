"""Renders one chat template: what a hostile one does must not matter to anything else.

Run by path as a child process (``python -I -S template_child.py PACKAGES...``), where PACKAGES are
the folders that hold jinja2 and markupsafe. Jinja's sandbox keeps a template from what it must not
reach, but not from computing without end or from filling the memory, much of it inside single
operations of Python, which nothing but the end of their process stops. So this process has little
memory, and a timer of its own ends it.

Messages in both directions are JSON objects behind their length in bytes, on a line of its own.
The first has the template's ``source``; the answer tells its ``variables`` and its ``literals``.
Each later one has the variables of a text; the answer is the ``text``, or the words with which the
template ``refused``, or an ``error``.
"""

from __future__ import annotations

import datetime
import json
import re
import resource
import signal
import sys
from typing import Any, NoReturn

ADDRESS_SPACE_BYTES = 512 << 20
CPU_SECONDS = 1.0
"""Time of the processor for one text, and for compiling the template."""
MAX_OUTPUT_CHARACTERS = 1 << 24

_LONGEST_MESSAGE = 300
_NOT_ASCII = re.compile("[^\\x00-\\x7f\\ufdd0]")


def make_environment() -> Any:
    """Jinja as chat templates expect it, and no more: the only place where one is made."""
    from jinja2 import nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, LoopControlExtension
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %}: marks what the assistant wrote, which matters for training alone."""

        tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class PlainNamespace(Namespace):
        """A namespace without the attributes that Python gives a meaning."""

        def __init__(*arguments: Any, **attributes: Any) -> None:
            for name in dict(*arguments[1:], **attributes):
                _require_plain(name)
            Namespace.__init__(*arguments, **attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _require_plain(name)
            Namespace.__setitem__(self, name, value)

    def _require_plain(name: object) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"a namespace has no attribute {name!r:.40}")

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    del environment.globals["lipsum"]
    environment.globals["namespace"] = PlainNamespace
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _RefusedError(Exception):
    """A template's own words for what it does not take."""


def _refuse(words: object = "") -> NoReturn:
    raise _RefusedError(str(words)[:_LONGEST_MESSAGE])


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as it is; Jinja's own filter writes < and > in a form for HTML."""
    text = json.dumps(
        value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys
    )
    # The mark of what is quoted (control_names.py) is looked for behind, so it stays as it is.
    return _NOT_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], text) if ensure_ascii else text


class _TooLongError(Exception):
    """The text is longer than any prompt."""


def describe(environment: Any, source: str) -> tuple[Any, dict[str, Any]]:
    """The compiled template and what the parent wants to know of it."""
    from jinja2 import meta, nodes

    tree = environment.parse(source)
    literals = [node.data for node in tree.find_all(nodes.TemplateData)]
    literals += [n.value for n in tree.find_all(nodes.Const) if isinstance(n.value, str)]
    facts = {"variables": sorted(meta.find_undeclared_variables(tree)), "literals": literals}
    return environment.from_string(source), facts


def render(template: Any, variables: dict[str, Any]) -> str:
    """The text that a template makes of some variables.

    Raises:
        _TooLongError: it is longer than any prompt.
    """
    pieces, length = [], 0
    for piece in template.generate(variables):
        pieces.append(piece)
        length += len(piece)
        if length > MAX_OUTPUT_CHARACTERS:
            raise _TooLongError(f"its text has more than {MAX_OUTPUT_CHARACTERS:,} characters")
    return "".join(pieces)


def _bound() -> None:
    """Give up what a template never needs; the parent is told by how the process ends."""
    for limit, value in (
        (resource.RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is for the parent
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the end, whatever Python is in


def _answer_to(state: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    try:
        if "template" not in state:
            state["template"], facts = describe(make_environment(), request["source"])
            return facts
        return {"text": render(state["template"], request)}
    except _RefusedError as refusal:
        return {"refused": str(refusal)}
    except MemoryError:
        return {"error": f"it needs more than {ADDRESS_SPACE_BYTES >> 20} MiB of memory"}
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # whatever a template comes to
        line = getattr(error, "lineno", None)
        where = f" in line {line}" if line else ""
        return {"error": f"{type(error).__name__}{where}: {error}"[:_LONGEST_MESSAGE]}


def main() -> None:
    """Compile, then render until the parent is gone."""
    sys.path += sys.argv[1:]
    import jinja2.sandbox  # noqa: F401 - not within the time of the template

    _bound()
    state: dict[str, Any] = {}
    while header := sys.stdin.buffer.readline():
        request = json.loads(sys.stdin.buffer.read(int(header)))
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        answer = _answer_to(state, request)
        data = json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace")
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(b"%d\n" % len(data) + data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
