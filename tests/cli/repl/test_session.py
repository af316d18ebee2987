"""The prompt as a person sees it: a real terminal of 80 columns, one process for many looks."""

import json
import os
import re
import signal

import pytest

EDITABLE = {"term": "xterm-256color"}
LEFT, UP = "\x1b[D", "\x1b[A"
PASTE, END_OF_PASTE = "\x1b[200~", "\x1b[201~"


@pytest.fixture
def chat(terminal, tiny_eva, tmp_path):
    there = terminal("chat", tiny_eva, "--max-tokens", "3", folder=tmp_path, **EDITABLE)
    there.wait_for("Ctrl-D leaves")
    there.wait_for("> ")
    return there


def saved(path):
    return [
        message["content"] for message in json.loads(path.read_text()) if message["role"] == "user"
    ]


def test_lines_are_edited_continued_pasted_and_remembered(chat, tmp_path, terminal, tiny_eva):
    chat.ask(f"你好汉{LEFT}\x7f大\x05！", "first token")  # 好 is taken away as one character
    chat.type('"""\r第一行\r')
    chat.ask('/exit is text"""', "first token")
    chat.type("half\\\r")
    chat.ask("the rest", "first token")
    chat.type(f"{PASTE}pasted\n/one{END_OF_PASTE}")
    chat.ask("", "first token")
    chat.ask("//slash", "first token")
    chat.type("/sav\ttal")
    chat.ask("k.json", "saved 10 messages to talk.json")
    turns = ["你大汉！", "第一行\n/exit is text", "half\nthe rest", "pasted\n/one", "/slash"]
    assert saved(tmp_path / "talk.json") == turns
    assert chat.leave() == 0

    # The next session has the lines of this one, and finds its files.
    again = terminal("chat", tiny_eva, "--max-tokens", "3", folder=tmp_path, **EDITABLE)
    again.wait_for("Ctrl-D leaves")
    again.wait_for("> ")
    again.ask("/load tal\t", "loaded 10 messages")
    again.ask(UP * 5, "first token")  # /load, /save, //slash, the paste, half
    again.type("/save talk.json\r")
    again.wait_for("talk.json exists; replace it? [y/N] ")
    again.ask("y", "saved 12 messages")
    assert saved(tmp_path / "talk.json") == [*turns, turns[2]]
    assert again.leave() == 0


def test_every_command_says_what_it_did(chat, tmp_path):
    assert "/system [TEXT]" in chat.ask("/help", "list what can be typed")
    chat.ask("/sytem x", "no command /sytem; did you mean /system?")
    chat.ask("/system 短句", "role system, which eva models do not know")
    chat.ask("/system", "system: none")
    chat.ask("/think on", "no switch for thinking")
    chat.ask("/think maybe", "/think is on, off or auto, got 'maybe'")
    chat.ask("/retry", "no turn to answer again")
    chat.ask("/save x.json", "nothing to save yet")
    chat.ask("/load none.json", "none.json: cannot be read")
    chat.ask("/set seed 7", "seed is 7")
    chat.ask("你好", "first token")
    chat.ask("/retry", "the seed is set, so the answer is the same")
    chat.ask("/save x.json", "saved 2 messages to x.json")
    chat.type("/save x.json\r")
    chat.wait_for("replace it? [y/N] ")
    chat.ask("", "not saved")
    chat.ask("/save --force x.json", "saved 2 messages to x.json")
    chat.ask("/reset", "all turns are forgotten")
    settings = chat.ask("/show", "last answer")
    for row in (r"model +tiny-eva, family eva", r"turns +0", r"seed +7 \(set\)", r"max_tokens +3"):
        assert re.search(row, settings), row
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", settings)
    assert all(len(line) <= 80 for line in plain.splitlines())
    chat.type("/exit\r")
    assert chat.end() == 0


def test_thoughts_are_dim_and_marked_and_can_be_turned_off(terminal, thinker, tmp_path):
    there = terminal("run", thinker, "--system", "短句", folder=tmp_path, **EDITABLE)
    there.wait_for("> ")
    there.ask("你好", "\x1b[2mthinking: h\x1b[0m\x1b[2mm\x1b[0m\r\n\r\n好!\r\n\x1b[2m9 tokens")
    there.ask("/think off", "think: off")
    assert "thinking" not in there.ask("再说", "first token")
    there.ask("/system none", "system: none")
    there.ask("/set max_tokens 2", "max_tokens is 2")
    there.ask("/think auto", "think: auto")
    there.ask("再说", "no answer came, so the turn is forgotten")
    there.ask("x" * 600, "reads at most 511")
    there.ask("/save talk.json", "saved 4 messages")
    assert json.loads((tmp_path / "talk.json").read_text())[-1]["content"] == "好!"
    assert there.leave() == 0


def test_ctrl_c_stops_the_answer_then_the_line_then_the_session(chat):
    chat.ask("/set max_tokens 100000", "max_tokens is 100000")
    chat.type("你好\r")
    chat.wait_for("\r\n")
    chat.wait_for("\x1b[?2004l\r")
    while not chat.shown:
        chat.read()  # the answer has begun
    chat.type("\x03")
    chat.wait_for("; stopped")
    chat.wait_for("> ")
    assert "turns               2" in chat.ask("/show", "last answer")
    chat.type("never sent")
    chat.wait_for("never sent")
    chat.interrupt_until("Ctrl-C again or Ctrl-D leaves")
    chat.wait_for("> ")
    chat.interrupt_until("\n")
    assert chat.end() == 0
    assert "error" not in chat.shown


def test_sigterm_ends_the_session_quietly_and_gives_the_terminal_back(chat):
    assert chat.end(signal.SIGTERM) == 128 + signal.SIGTERM
    assert "\x1b[?2004l" in chat.shown  # pasted text is no longer marked
    assert "Traceback" not in chat.shown


def test_a_terminal_that_is_closed_ends_the_session(chat):
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, chat.master)  # closes this end, the only one
    os.close(null)
    assert chat.process.wait(timeout=30) in (0, 128 + signal.SIGHUP)
