import errno

import pytest

from martlet.cli.repl.commands import Command, Commands
from martlet.cli.repl.conversation import converse
from martlet.cli.repl.history import History
from martlet.cli.repl.line_reader import LineReader
from martlet.errors import UsageError


class Typed(LineReader):
    """Gives these lines; an exception is raised, the end is Ctrl-D."""

    def __init__(self, *lines):
        super().__init__(History(None))
        self._lines = list(lines)

    def read_line(self, prompt):
        line = self._lines.pop(0) if self._lines else EOFError()
        if isinstance(line, BaseException):
            raise line
        return line


def converse_typing(*lines, answer=None, commands=()):
    answered = []
    converse(Typed(*lines), Commands(commands), answer or answered.append)
    return answered


def test_entries_are_answered_until_ctrl_d():
    assert converse_typing("一", "", "  ", "二") == ["一", "二"]


def test_commands_are_carried_out_and_never_answered():
    done = []
    reset = Command("/reset", "", "", lambda text: done.append("reset"))
    assert converse_typing("/reset", "//reset", "/exit", "never", commands=[reset]) == ["/reset"]
    assert done == ["reset"]


def test_ctrl_c_clears_the_line_and_twice_in_a_row_leaves(capsys):
    assert converse_typing(KeyboardInterrupt(), "一", KeyboardInterrupt(), "二") == ["一", "二"]
    assert converse_typing(KeyboardInterrupt(), KeyboardInterrupt(), "never") == []
    # In the second line of an entry there is something to clear.
    assert converse_typing(KeyboardInterrupt(), "a\\", KeyboardInterrupt(), "二") == ["二"]
    assert converse_typing('"""a', EOFError(), "二") == ["二"]  # so it is for Ctrl-D
    assert "Ctrl-C again or Ctrl-D leaves" in capsys.readouterr().err


def test_ctrl_c_stops_an_answer_and_keeps_the_session(capsys):
    answered = []

    def answer(text):
        answered.append(text)
        if text == "一":
            raise KeyboardInterrupt

    converse_typing("一", "二", answer=answer)
    assert answered == ["一", "二"]
    assert capsys.readouterr().err == "stopped\n\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UsageError("it is too long"), "error: it is too long\n"),
        (MemoryError("no 9 GiB"), "error: out of memory: no 9 GiB; "),
    ],
)
def test_a_mistake_or_want_of_memory_is_one_line_and_keeps_the_session(capsys, error, line):
    answered = []

    def answer(text):
        answered.append(text)
        raise error

    converse_typing("一", "二", answer=answer)
    assert answered == ["一", "二"]
    assert capsys.readouterr().err.count(line) == 2


def test_what_nobody_foresaw_is_not_hidden():
    def answer(text):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        converse_typing("一", answer=answer)


def test_a_terminal_that_is_gone_ends_the_session_quietly():
    def answer(text):
        raise OSError(errno.EIO, "Input/output error")

    converse_typing("一", "never", answer=answer)
    with pytest.raises(BrokenPipeError):
        converse_typing("一", answer=lambda text: (_ for _ in ()).throw(BrokenPipeError()))
