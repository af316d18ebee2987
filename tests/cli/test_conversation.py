import sys

import pytest

from martlet.cli.chat import Dialogue
from martlet.cli.conversation import converse
from martlet.cli.options import SamplingOptions
from martlet.errors import UsageError


@pytest.fixture
def typed(monkeypatch):
    """Makes input() give these lines; an exception is raised, the end is Ctrl-D."""

    def prepare(*lines):
        remaining = list(lines)

        def read(prompt=""):
            line = remaining.pop(0) if remaining else EOFError()
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)

    return prepare


def test_lines_are_answered_until_ctrl_d(typed):
    typed("一", "", "二")
    answered = []
    converse("hello", answered.append, {})
    assert answered == ["一", "二"]


def test_exit_leaves_and_other_commands_are_carried_out(typed):
    typed("/reset", "/exit", "never")
    calls = []
    converse("hello", calls.append, {"/reset": lambda: calls.append("reset")})
    assert calls == ["reset"]


def test_help_names_all_commands(typed, capsys):
    typed("/help")
    converse("hello", print, {"/reset": lambda: None})
    assert "/help /exit /reset" in capsys.readouterr().err


def test_ctrl_c_stops_the_line_or_the_answer_and_keeps_the_session(typed, capsys):
    typed("一", KeyboardInterrupt(), "二")
    answered = []

    def answer(line):
        answered.append(line)
        if line == "一":
            raise KeyboardInterrupt

    converse("hello", answer, {})
    assert answered == ["一", "二"]
    shown = capsys.readouterr().err
    assert "stopped" in shown
    assert "Ctrl-D leaves" in shown


def test_a_mistake_is_one_line_and_keeps_the_session(typed, capsys):
    typed("一", "二")
    answered = []

    def answer(line):
        answered.append(line)
        raise UsageError(f"{line} is too long")

    converse("hello", answer, {})
    assert answered == ["一", "二"]
    assert "error: 一 is too long\n" in capsys.readouterr().err


SAMPLING = SamplingOptions(6, None, None, None, None, None, None, None, (), 1)


@pytest.fixture(scope="module")
def eva(tiny_eva):
    import martlet

    return martlet.load(tiny_eva)


def test_a_dialogue_remembers_both_sides_until_reset(eva, capsys):
    dialogue = Dialogue(eva, SAMPLING)
    dialogue.answer("你好")
    reply = capsys.readouterr().out.removesuffix("\n")
    assert dialogue.messages == [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": reply},
    ]
    dialogue.answer("再说")
    assert [m["role"] for m in dialogue.messages] == ["user", "assistant"] * 2
    dialogue.reset()
    assert dialogue.messages == []


def test_what_was_said_before_ctrl_c_counts_as_the_answer(eva, monkeypatch):
    dialogue = Dialogue(eva, SAMPLING)
    num_pieces = 0

    class InterruptedOutput:
        def write(self, text):
            nonlocal num_pieces
            num_pieces += text != "\n"
            if num_pieces == 3:
                num_pieces += 1  # once
                raise KeyboardInterrupt

        def flush(self):
            pass

        def isatty(self):
            return False

    monkeypatch.setattr(sys, "stdout", InterruptedOutput())
    with pytest.raises(KeyboardInterrupt):
        dialogue.answer("你好")
    assert [m["role"] for m in dialogue.messages] == ["user", "assistant"]
    assert dialogue.messages[1]["content"]


def test_a_turn_that_got_no_answer_is_forgotten(eva):
    dialogue = Dialogue(eva, SAMPLING)
    with pytest.raises(UsageError):
        dialogue.answer(" ")
    assert dialogue.messages == []
