import json
import stat

import pytest

from martlet.cli.repl import history as history_module
from martlet.cli.repl.history import NO_HISTORY, History, history_path


def test_entries_of_several_lines_come_back_in_the_next_session(tmp_path):
    path = tmp_path / "state" / "history"
    first = History(path)
    assert [first.add(entry) for entry in ("你好", "a\nb", "a\nb")] == [True, True, False]
    assert History(path).entries == ["你好", "a\nb"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_sessions_side_by_side_lose_nothing(tmp_path):
    one, two = History(tmp_path / "history"), History(tmp_path / "history")
    one.add("one")
    two.add("two")
    assert History(tmp_path / "history").entries == ["one", "two"]


def test_a_file_that_has_grown_is_cut_to_its_newest_entries(tmp_path, monkeypatch):
    monkeypatch.setattr(history_module, "_LARGEST_FILE_BYTES", 1000)
    path = tmp_path / "history"
    for number in range(200):
        History(path).add(f"entry {number}")
    assert path.stat().st_size <= 1000 + len('"entry 199"\n')
    entries = History(path).entries
    assert entries[-1] == "entry 199"
    assert entries == [f"entry {number}" for number in range(200 - len(entries), 200)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_very_long_entry_is_not_kept_for_the_next_session(tmp_path):
    one = History(tmp_path / "history")
    one.add("x" * 100_000)
    assert one.entries
    assert History(tmp_path / "history").entries == []


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[1]\n{}\nnull\n", b'"\\u0000"\n', b"[" * 9999])
def test_what_is_no_entry_is_passed_over(tmp_path, content):
    path = tmp_path / "history"
    path.write_bytes(content + b"\n" + json.dumps("good").encode() + b"\n")
    assert History(path).entries == ["good"]


def test_a_file_that_cannot_be_written_is_no_reason_to_stop(tmp_path):
    (tmp_path / "file").write_text("")
    one = History(tmp_path / "file" / "history")
    assert one.add("你好")
    assert one.entries == ["你好"]


def test_no_history_is_kept_where_none_is_wanted(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv(NO_HISTORY, raising=False)
    assert history_path() == tmp_path / "martlet" / "history"
    monkeypatch.setenv(NO_HISTORY, "1")
    assert history_path() is None
    monkeypatch.setenv(NO_HISTORY, "0")
    assert history_path() is not None
    assert History(None).add("你好")
    assert list(tmp_path.iterdir()) == []
