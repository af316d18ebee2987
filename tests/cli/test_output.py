import io
import os
import sys
import threading

import pytest

from martlet.cli import output
from martlet.cli.output import prompt_with_standard_input, say
from martlet.errors import UsageError


class Listening(io.StringIO):
    """A stderr that tells when some words are on it."""

    def __init__(self, words):
        super().__init__()
        self.has_words = threading.Event()
        self._words = words

    def write(self, text):
        count = super().write(text)
        if self._words in self.getvalue():
            self.has_words.set()
        return count


def test_a_pipe_that_stays_open_is_named_while_it_is_waited_for(monkeypatch):
    monkeypatch.setattr(output, "_SECONDS_BEFORE_A_WORD", 0.01)
    stderr = Listening("waiting for the end of stdin")
    monkeypatch.setattr(sys, "stderr", stderr)
    reading, writing = os.pipe()
    with os.fdopen(reading) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)

        def write_later():
            stderr.has_words.wait(60)
            os.write(writing, "一行".encode())
            os.close(writing)

        writer = threading.Thread(target=write_later)
        writer.start()
        assert prompt_with_standard_input("你好") == "你好\n\n一行"
        writer.join()
    assert stderr.has_words.is_set()


@pytest.mark.parametrize("content", [b"", b"\n"])
def test_a_prompt_beside_an_empty_stdin_is_itself(monkeypatch, capsys, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    assert prompt_with_standard_input("你好") == "你好"
    assert capsys.readouterr().err == ""


def test_an_empty_prompt_is_refused():
    with pytest.raises(UsageError, match="PROMPT is empty"):
        prompt_with_standard_input(" ")


def test_messages_are_broken_between_words_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("TERM", "xterm")
    say("error: [这里] is a message of many words that is long\x1b[2J")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("error: [这里] is")
    assert " ".join(lines).endswith("long\ufffd[2J")
