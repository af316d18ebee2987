import pytest

from martlet.cli import progress
from martlet.cli.output import print_text, stream_text
from martlet.cli.progress import Meter


@pytest.fixture
def clock(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(progress.time, "monotonic", lambda: Clock.now)
    return Clock


def test_away_from_a_terminal_a_line_comes_every_five_seconds_with_the_time_left(clock, capsys):
    with Meter("converting") as meter:
        for second in range(1, 11):
            clock.now = float(second)
            meter.update(second, 20, "some tensor")
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["converting: 25%, 15.0 s left", "converting: 50%, 10.0 s left"]


def test_lines_name_what_is_worked_on_where_that_is_wanted(clock, capsys):
    with Meter("adapting", has_lines_of_detail=True) as meter:
        clock.now = 5.0
        meter.update(1, 4, "decoder.3: error 2.1e-03")
    line = "adapting: 25%, 15.0 s left; decoder.3: error 2.1e-03\n"
    assert capsys.readouterr().err == line


def test_short_work_says_nothing(clock, capsys):
    with Meter("converting") as meter:
        clock.now = 4.9
        meter.update(20, 20)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_there_is_a_bar_that_goes_away(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with Meter("converting") as meter:
        meter.update(1, 2, "some tensor")
    shown = capsys.readouterr()
    assert "converting" in shown.err
    assert shown.out == ""


def test_control_characters_of_a_model_do_not_reach_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    stream_text(["a\x1b[2J", "\x07b\tc\n"], [])
    print_text("\x9b31mred")
    assert capsys.readouterr().out == "a\ufffd[2J\ufffdb\tc\n\n\ufffd31mred\n"


def test_in_a_pipe_the_text_is_exactly_that_of_the_model(capsys):
    stream_text(["a\x1b[2J"], [])
    assert capsys.readouterr().out == "a\x1b[2J\n"
