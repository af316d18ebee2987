import json
import stat

import pytest

from martlet.cli.repl.message_file import read_messages, write_messages
from martlet.errors import UsageError

TALK = [
    {"role": "system", "content": "短句"},
    {"role": "user", "content": "你好\n再说"},
    {"role": "assistant", "content": "好"},
]


def test_a_dialogue_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "对话.json"
    write_messages(path, TALK)
    assert read_messages(path) == TALK
    assert "短句" in path.read_text(encoding="utf-8")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_messages(path, TALK[1:])
    assert read_messages(path) == TALK[1:]
    assert list(tmp_path.iterdir()) == [path]


def test_what_other_programs_add_to_a_message_is_passed_over(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"role": "user", "content": "x", "time": 3}]))
    assert read_messages(path) == [{"role": "user", "content": "x"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"{}", "a JSON list of at least one message"),
        (b"[]", "a JSON list of at least one message"),
        (b"[3]", "message 1 must be an object with role and content, got 3"),
        (b'[{"role": "user"}]', "message 1 must be an object with role and content"),
        (b'[{"role": "king", "content": "x"}]', "message 1 has the role 'king'"),
        (b'[{"role": [], "content": "x"}]', "message 1 has the role"),
        (b'[{"role": "user", "content": " "}]', "message 1 has no text"),
        (b'[{"role": "user", "content": 3}]', "message 1 has no text"),
        (b'[{"role": "user", "content": "\\ud800"}]', "message 1 has half a character at 0"),
        (
            b'[{"role": "user", "content": "x"}, {"role": "system", "content": "y"}]',
            "message 2 is the system's",
        ),
    ],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, content, message):
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_messages(path)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"none\.json: cannot be read: No such file"):
        read_messages(tmp_path / "none.json")
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        read_messages(tmp_path)
    with pytest.raises(UsageError, match="its folder does not exist"):
        write_messages(tmp_path / "no" / "talk.json", TALK)
    with pytest.raises(UsageError, match="is a folder"):
        write_messages(tmp_path, TALK)


def test_a_file_that_cannot_be_finished_leaves_the_one_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "talk.json"
    write_messages(path, TALK)

    def interrupt(descriptor):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_messages(path, TALK[1:])
    assert read_messages(path) == TALK
    assert list(tmp_path.iterdir()) == [path]
