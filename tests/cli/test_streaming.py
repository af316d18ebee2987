import contextlib

import pytest

from martlet.cli.output import print_text
from martlet.cli.streaming import Answer, show_answer


class Stream(contextlib.nullcontext):
    """Gives these pieces; an exception is raised."""

    def __init__(self, *pieces):
        super().__init__()
        self._pieces = list(pieces)

    def __iter__(self):
        return self

    def __next__(self):
        if not self._pieces:
            raise StopIteration
        piece = self._pieces.pop(0)
        if isinstance(piece, BaseException):
            raise piece
        return piece


def show(*pieces):
    answer = Answer()
    show_answer(Stream(*pieces), answer)
    return answer


def test_control_characters_of_a_model_do_not_reach_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert show("a\x1b[2J", "\x07b\tc\n").text == "a\x1b[2J\x07b\tc\n"
    print_text("\x9b31mred")
    assert capsys.readouterr().out == "a\ufffd[2J\ufffdb\tc\n\n\ufffd31mred\n"


def test_in_a_pipe_the_text_is_exactly_that_of_the_model(capsys):
    show("a\x1b[2J")
    assert capsys.readouterr().out == "a\x1b[2J\n"


def test_the_line_of_an_answer_that_breaks_off_is_ended(capsys):
    with pytest.raises(KeyboardInterrupt):
        show("half", KeyboardInterrupt())
    assert capsys.readouterr().out == "half\n"


def test_a_broken_pipe_is_told_and_not_covered_by_another_error(monkeypatch):
    def refuse(text):
        raise BrokenPipeError

    monkeypatch.setattr("sys.stdout.write", refuse)
    with pytest.raises(BrokenPipeError):
        show("text")
