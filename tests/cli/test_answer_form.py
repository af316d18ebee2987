import json

import pytest

import martlet as martlet_package

FAST = ("--max-tokens", "8", "--seed", "1")


@pytest.fixture(scope="module")
def talker(tiny_eva):
    return martlet_package.load(tiny_eva)


@pytest.fixture(scope="module")
def reply(talker):
    return talker.chat([{"role": "user", "content": "你好"}], max_tokens=8, seed=1)


@pytest.mark.parametrize("verb", ["run", "chat"])
def test_json_has_the_answer_and_how_it_went(martlet, tiny_eva, reply, verb):
    done = martlet(verb, tiny_eva, *FAST, "--json", stdin="你好")
    answer = json.loads(done.stdout)
    assert answer["text"] == reply
    assert answer["model"] == str(tiny_eva)
    assert answer["stats"]["finish_reason"] == "length"
    assert answer["stats"]["output_tokens"] == 8
    assert answer["stats"]["seed"] == 1
    assert answer["stats"]["tokens_per_second"] > 0
    assert "thoughts" not in answer
    assert "first token after" in done.stderr


def test_json_lines_come_piece_by_piece_and_end_with_the_stats(martlet, tiny_eva, reply):
    done = martlet("run", tiny_eva, "你好", *FAST, "--json", "--stream")
    *pieces, last = map(json.loads, done.stdout.splitlines())
    assert len(pieces) > 1
    assert "".join(piece["text"] for piece in pieces) == reply
    assert last["stats"]["output_tokens"] == 8


def test_json_of_other_tasks_is_that_of_their_verbs(martlet, tiny_cpm1, tiny_cpm2):
    for verb, model, text in (("write", tiny_cpm1, "却说"), ("fill", tiny_cpm2, "次日__。")):
        expected = json.loads(martlet(verb, model, text, *FAST, "--json").stdout)
        answer = json.loads(martlet("run", model, text, *FAST, "--json").stdout)
        assert answer.keys() == expected.keys()
        assert answer["text"] == expected["text"]
    refused = martlet("run", tiny_cpm2, "次日__。", "--json", "--stream")
    assert (refused.code, refused.stdout) == (2, "")


def test_stream_alone_is_a_usage_error(martlet):
    done = martlet("run", "eva-mini", "你好", "--stream")
    assert done.code == 2
    assert "--stream goes with --json" in done.stderr


def test_what_is_piped_stands_behind_the_prompt(martlet, tiny_eva, talker):
    done = martlet("run", tiny_eva, "你好", *FAST, stdin="一行\n")
    turn = [{"role": "user", "content": "你好\n\n一行"}]
    assert done.stdout == talker.chat(turn, max_tokens=8, seed=1) + "\n"


def test_a_dash_reads_the_prompt_from_stdin(martlet, tiny_eva, reply):
    assert martlet("run", tiny_eva, "-", *FAST, stdin="你好\n").stdout == reply + "\n"
    assert martlet("run", tiny_eva, "-").code == 2


def test_messages_from_a_file_are_gone_on_from(martlet, tiny_eva, talker, tmp_path):
    file = tmp_path / "talk.json"
    talk = [{"role": "user", "content": "你好"}, {"role": "assistant", "content": "好"}]
    open_talk = [*talk, {"role": "user", "content": "再说"}]
    expected = talker.chat(open_talk, max_tokens=8, seed=1) + "\n"
    file.write_text(json.dumps(open_talk))
    assert martlet("chat", tiny_eva, "--messages", file, *FAST).stdout == expected
    file.write_text(json.dumps(talk))
    answered = martlet("chat", tiny_eva, "--messages", file, *FAST, stdin="再说")
    assert answered.stdout == expected
    piped = martlet("chat", tiny_eva, "--messages", "-", *FAST, stdin=json.dumps(open_talk))
    assert piped.stdout == expected


@pytest.mark.parametrize(
    ("verb", "flags", "stdin", "message"),
    [
        ("chat", ("--messages", "none.json"), "", "none.json: cannot be read"),
        ("chat", ("--messages", "-"), "{}", "stdin: must hold a JSON list"),
        (
            "chat",
            ("--messages", "-"),
            '[{"role": "assistant", "content": "x"}]',
            "must end with the user's turn",
        ),
        ("chat", ("--system", " "), "x", "--system is empty"),
        (
            "chat",
            ("--messages", "-", "--system", "x"),
            '[{"role": "system", "content": "x"}]',
            "both tell the model",
        ),
    ],
)
def test_a_wrong_beginning_is_refused_before_the_model_is_looked_for(
    martlet, verb, flags, stdin, message
):
    done = martlet(verb, "no-such-model", *flags, stdin=stdin)
    assert done.code == 2
    assert message in done.stderr


def test_flags_of_a_dialogue_are_refused_where_the_model_cannot_follow_them(
    martlet, tiny_cpm1, tiny_eva
):
    for flag in (("--system", "x"), ("--think",), ("--no-think",)):
        written = martlet("run", tiny_cpm1, "却说", *flag)
        assert (written.code, written.stdout) == (2, "")
        assert "does not chat" in written.stderr
    for flag in (("--system", "x"), ("--think",)):
        assert martlet("run", tiny_eva, "你好", *flag).code == 2


def test_json_needs_a_text_where_a_person_would_type(martlet, monkeypatch):
    monkeypatch.setattr("martlet.cli.run.is_interactive", lambda: True)
    assert "--json needs a PROMPT" in martlet("run", "eva-mini", "--json").stderr
    monkeypatch.setattr("martlet.cli.chat.is_interactive", lambda: True)
    assert "--json takes its turn from" in martlet("chat", "eva-mini", "--json").stderr


def test_thoughts_go_to_stderr_and_into_json(martlet, thinker):
    shown = martlet("run", thinker, "你好")
    assert shown.stdout == "好!\n"
    assert shown.stderr.startswith("thinking: hm\n\n9 tokens")
    answer = json.loads(martlet("run", thinker, "你好", "--json").stdout)
    assert (answer["thoughts"], answer["text"]) == ("hm", "好!")
    assert answer["stats"]["finish_reason"] == "eos"
    lines = martlet("run", thinker, "你好", "--json", "--stream").stdout.splitlines()
    pieces = [json.loads(line) for line in lines[:-1]]
    assert "".join(piece.get("thoughts", "") for piece in pieces) == "hm"
    assert "".join(piece.get("text", "") for piece in pieces) == "好!"
    assert all(len(piece) == 1 for piece in pieces)


def test_a_model_that_can_be_told_to_does_not_think(martlet, thinker):
    shown = martlet("chat", thinker, "--no-think", "--system", "短句", stdin="你好")
    assert shown.stdout == "好!\n"
    assert "thinking" not in shown.stderr


def test_a_reply_that_is_cut_off_in_its_thoughts_has_no_answer(martlet, thinker):
    shown = martlet("run", thinker, "你好", "--max-tokens", "2")
    assert (shown.code, shown.stdout) == (0, "")
    assert shown.stderr.startswith("thinking: h\n2 tokens")
