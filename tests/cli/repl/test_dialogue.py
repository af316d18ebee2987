import os
import signal
import sys

import pytest

import martlet
from martlet.cli.repl.dialogue import Dialogue
from martlet.cli.repl.settings import Settings
from martlet.errors import UsageError


@pytest.fixture(scope="module")
def eva(tiny_eva):
    return martlet.load(tiny_eva)


@pytest.fixture
def dialogue(eva):
    return Dialogue(eva, Settings({"max_tokens": 6, "seed": 1}))


def roles(dialogue):
    return [message["role"] for message in dialogue.messages]


def test_a_dialogue_remembers_both_sides(dialogue, eva, capsys):
    dialogue.answer("你好")
    reply = capsys.readouterr().out.removesuffix("\n")
    assert dialogue.messages == [
        {"role": "user", "content": "你好"},
        {"role": "assistant", "content": reply},
    ]
    dialogue.answer("再说")
    asked = [*dialogue.messages[:2], {"role": "user", "content": "再说"}]
    assert dialogue.messages[3]["content"] == eva.chat(asked, max_tokens=6, seed=1)
    assert "6 tokens, " in capsys.readouterr().err


class OutputThatInterrupts:
    """A stdout that sends Ctrl-C to this process when the third piece is shown."""

    def __init__(self, times=1):
        self.text = ""
        self._num_pieces = 0
        self._times = times

    def write(self, text):
        self.text += text
        self._num_pieces += 1
        if self._num_pieces in range(3, 3 + self._times):
            os.kill(os.getpid(), signal.SIGINT)

    def flush(self):
        pass

    def isatty(self):
        return False


def test_ctrl_c_ends_an_answer_after_its_token_and_what_was_said_counts(eva, monkeypatch, capsys):
    dialogue = Dialogue(eva, Settings({"max_tokens": 100_000, "seed": 1}))
    output = OutputThatInterrupts()
    monkeypatch.setattr(sys, "stdout", output)
    dialogue.answer("你好")
    assert roles(dialogue) == ["user", "assistant"]
    assert dialogue.messages[1]["content"] == output.text.removesuffix("\n")
    shown = capsys.readouterr().err
    assert "tokens/s" in shown
    assert shown.endswith("; stopped\n")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_ctrl_c_does_not_wait_for_the_token(eva, monkeypatch):
    dialogue = Dialogue(eva, Settings({"max_tokens": 100_000, "seed": 1}))
    monkeypatch.setattr(sys, "stdout", OutputThatInterrupts(times=2))
    monkeypatch.setattr("martlet.engine.text.TextStream.cancel", lambda self: None)
    with pytest.raises(KeyboardInterrupt):
        dialogue.answer("你好")
    assert roles(dialogue) == ["user", "assistant"]


def test_a_turn_that_got_no_answer_is_forgotten(dialogue):
    with pytest.raises(UsageError):
        dialogue.answer(" ")
    assert dialogue.messages == []


def test_retry_answers_the_last_turn_again(eva, capsys):
    settings = Settings({"max_tokens": 6})
    dialogue = Dialogue(eva, settings)
    with pytest.raises(UsageError, match="no turn to answer again"):
        dialogue.retry()
    dialogue.answer("你好")
    settings.set("seed 5")
    dialogue.retry()
    assert dialogue.turns[1]["content"] == eva.chat(dialogue.turns[:1], max_tokens=6, seed=5)
    assert roles(dialogue) == ["user", "assistant"]
    assert "the seed is set, so the answer is the same" in capsys.readouterr().err


def test_other_messages_take_the_place_of_all_turns(dialogue):
    dialogue.answer("你好")
    dialogue.replace([{"role": "user", "content": "天"}])
    assert roles(dialogue) == ["user"]
    dialogue.retry()
    assert roles(dialogue) == ["user", "assistant"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda dialogue: dialogue.set_system("短句"), "role system"),
        (lambda dialogue: dialogue.set_thinking(True), "thinking"),
        (lambda dialogue: dialogue.replace([{"role": "system", "content": "x"}]), "role system"),
    ],
)
def test_what_the_model_cannot_be_told_is_refused_and_changes_nothing(dialogue, change, message):
    dialogue.answer("你好")
    before = dialogue.messages
    with pytest.raises(UsageError, match=message):
        change(dialogue)
    assert dialogue.messages == before
    assert dialogue.thinking is None
