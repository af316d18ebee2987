import threading

import pytest

from martlet.cli import progress
from martlet.cli.progress import Loading, Meter, Waiting


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


def test_a_wait_shows_nothing_at_first_and_leaves_nothing_behind(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Waiting("reading"):
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_WAITING_SHOWS", 0.0)
    shown = ""
    with Waiting("reading"):
        while "reading" not in shown:
            shown += capsys.readouterr().err
    assert capsys.readouterr().err.endswith("\x1b[2K")  # the line is cleared


def test_away_from_a_terminal_a_wait_says_nothing(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BEFORE_WAITING_SHOWS", 0.0)
    with Waiting("reading"):
        threading.Event().wait(0.05)
    assert capsys.readouterr().err == ""


def test_loading_tells_how_far_it_is_once_it_takes_long(clock, capsys):
    with Loading("loading it") as loading:
        for second in range(1, 9):
            clock.now = float(second)
            loading.update(second, 16, "some tensor")
    assert capsys.readouterr().err.splitlines() == ["loading it: 44%, 6.4 s left"]


def test_loading_on_a_terminal_is_a_spinner_and_then_a_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    with Loading("loading it") as loading:
        loading.update(1, 4)
        assert "%" not in capsys.readouterr().err
        monkeypatch.setattr(progress, "_SECONDS_BEFORE_WAITING_SHOWS", 0.0)
        loading.update(2, 4)
    assert "50 %" in capsys.readouterr().err
