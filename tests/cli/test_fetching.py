import time
from pathlib import Path

import pytest

from martlet.cli import progress
from martlet.cli.fetching import PullMeter, locate_checkpoint
from martlet.errors import ModelNotFoundError
from martlet.hub.hub_id import parse_hub_id
from martlet.hub.listing import RemoteFile
from martlet.hub.pull import PullPlan

MIB = 1 << 20


def plan(missing_bytes, num_files=2, left_out=()):
    return PullPlan(
        hub_id=parse_hub_id("some/model"),
        commit="1" * 40,
        files=tuple(RemoteFile(f"file-{i}", 1, "a" * 64) for i in range(num_files)),
        left_out=tuple(left_out),
        total_bytes=100 * MIB,
        missing_bytes=missing_bytes,
        path=Path("/nowhere"),
    )


def test_what_will_be_fetched_and_what_is_here_is_said_first(capsys):
    with PullMeter("some/model") as meter:
        meter.announce(plan(60 * MIB, num_files=8, left_out=["pytorch_model.bin"]))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "fetching some/model at 111111111111: 8 files, 60.0 MiB, 40.0 MiB more are here "
        "(file-0, file-1, file-2, file-3, file-4, file-5 and 2 more)",
        "left out: pytorch_model.bin",
    ]


def test_where_nothing_is_missing_nothing_is_said(capsys):
    with PullMeter("some/model") as meter:
        meter.announce(plan(0))
    assert capsys.readouterr().err == ""


def test_the_time_that_is_left_counts_only_what_is_fetched(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    with PullMeter("some/model") as meter:
        meter.announce(plan(60 * MIB))
        clock = 29.0
        meter.update(40 * MIB, 100 * MIB, "file-0")
        clock = 30.0  # half of what was missing took half a minute
        meter.update(70 * MIB, 100 * MIB, "file-1")
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("fetching some/model: 50%, 30.0 s left")
    assert line.endswith("70.0 MiB of 100.0 MiB, 30.0 MiB/s, file-1")


@pytest.mark.parametrize("source", ["here", "./some/model", "/some/model", "~/some/model"])
def test_a_path_of_a_checkpoint_is_no_name_of_the_hub(source, monkeypatch):
    def refuse(model):
        raise AssertionError(model)

    monkeypatch.setattr("martlet.cli.fetching.locate_model", refuse)
    assert locate_checkpoint(source) == Path(source).expanduser()


def test_a_checkpoint_may_be_on_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelNotFoundError, match="some/model is not in the cache"):
        locate_checkpoint("some/model")
