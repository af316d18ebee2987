import json

import pytest

import martlet as martlet_package

FAST = ("--max-tokens", "8", "--seed", "1")


@pytest.fixture(scope="module")
def writer(tiny_cpm1):
    return martlet_package.load(tiny_cpm1)


def test_write_prints_what_the_api_gives_and_nothing_else(martlet, tiny_cpm1, writer):
    done = martlet("write", tiny_cpm1, "却说那老汉", *FAST)
    assert done.code == 0
    assert done.stdout == writer.write("却说那老汉", max_tokens=8, seed=1) + "\n"


def test_after_an_answer_stderr_tells_speed_and_where_the_weights_live(martlet, tiny_cpm1, writer):
    done = martlet("write", tiny_cpm1, "却说那老汉", *FAST)
    assert "8 tokens, " in done.stderr
    assert "tokens/s, first token after" in done.stderr
    assert done.stderr.count("\n") == 1
    assert writer.plan.describe() in done.stderr


@pytest.mark.parametrize("arguments", [(), ("-",)])
def test_the_text_comes_from_stdin_where_it_is_left_out_or_a_dash(martlet, tiny_cpm1, arguments):
    piped = martlet("write", tiny_cpm1, *arguments, *FAST, stdin="却说那老汉\n")
    given = martlet("write", tiny_cpm1, "却说那老汉", *FAST)
    assert piped.code == 0
    assert piped.stdout == given.stdout


def test_write_json_has_the_text_and_the_stats(martlet, tiny_cpm1, writer):
    done = martlet("write", tiny_cpm1, "却说那老汉", *FAST, "--json")
    answer = json.loads(done.stdout)
    assert answer["text"] == writer.write("却说那老汉", max_tokens=8, seed=1)
    assert answer["opening"] == "却说那老汉"
    assert answer["stats"]["output_tokens"] == 8
    assert answer["stats"]["seed"] == 1


def test_flags_reach_the_sampler(martlet, tiny_cpm1, writer):
    done = martlet(
        "write", tiny_cpm1, "却说", "--max-tokens", "6", "--temperature", "0", "--presence-penalty",
        "2", "--min-p", "0.1", "--repetition-penalty", "1.5",
    )  # fmt: skip
    expected = writer.write(
        "却说", max_tokens=6, temperature=0, presence_penalty=2, min_p=0.1, repetition_penalty=1.5
    )
    assert done.stdout == expected + "\n"


def test_a_stop_string_is_not_shown(martlet, tiny_cpm1, writer):
    whole = writer.write("却说那老汉", max_tokens=8, seed=1)
    stop = whole[3:5]
    done = martlet("write", tiny_cpm1, "却说那老汉", *FAST, "--stop", stop)
    assert done.stdout == whole[: whole.index(stop)] + "\n"


def test_fill_prints_the_whole_text_plain_when_piped(martlet, tiny_cpm2):
    done = martlet("fill", tiny_cpm2, "次日清晨，__，众人<blank>。", *FAST)
    expected = martlet_package.load(tiny_cpm2).fill(
        "次日清晨，__，众人<blank>。", max_tokens=8, seed=1
    )
    assert done.code == 0
    assert done.stdout == expected.text + "\n"
    assert "\x1b" not in done.stdout


def test_fill_json_places_every_blank_in_the_text(martlet, tiny_cpm2):
    done = martlet("fill", tiny_cpm2, "次日清晨，__，众人<blank>。", *FAST, "--json")
    answer = json.loads(done.stdout)
    assert [blank["index"] for blank in answer["blanks"]] == [0, 1]
    for blank in answer["blanks"]:
        assert answer["text"][blank["start"] : blank["end"]] == blank["text"] != ""


def test_fill_says_which_blanks_were_cut_short(martlet, tiny_cpm2):
    done = martlet("fill", tiny_cpm2, "次日__。", "--max-tokens", "1", "--seed", "1")
    assert "cut short by --max-tokens: blank 1" in done.stderr


def test_a_text_without_a_blank_is_a_usage_error_before_the_model_is_looked_for(martlet):
    done = martlet("fill", "no-such-model", "没有空的一句话。")
    assert done.code == 2
    assert done.stdout == ""
    assert done.stderr == (
        "error: the text has no blank; write <blank>, <span> or __ where words are missing\n"
    )


def test_chat_answers_a_turn_from_a_pipe(martlet, tiny_eva):
    done = martlet("chat", tiny_eva, *FAST, stdin="你这汉子是谁？")
    expected = martlet_package.load(tiny_eva).chat(
        [{"role": "user", "content": "你这汉子是谁？"}], max_tokens=8, seed=1
    )
    assert done.code == 0
    assert done.stdout == expected + "\n"


def test_run_chats_with_a_dialogue_model(martlet, tiny_eva):
    assert (
        martlet("run", tiny_eva, "你好", *FAST).stdout
        == martlet("chat", tiny_eva, *FAST, stdin="你好").stdout
    )


def test_run_fills_where_there_is_a_blank_and_writes_where_there_is_none(martlet, tiny_cpm2):
    filled = martlet("run", tiny_cpm2, "次日__。", *FAST)
    assert filled.stdout == martlet("fill", tiny_cpm2, "次日__。", *FAST).stdout
    written = martlet("run", tiny_cpm2, "次日清晨，", *FAST)
    assert written.stdout == martlet("write", tiny_cpm2, "次日清晨，", *FAST).stdout


def test_run_takes_its_prompt_from_a_pipe(martlet, tiny_cpm1):
    piped = martlet("run", tiny_cpm1, *FAST, stdin="却说那老汉")
    assert piped.stdout == martlet("write", tiny_cpm1, "却说那老汉", *FAST).stdout


@pytest.mark.parametrize("stdin", [b"", b" \n"])
def test_an_empty_stdin_is_a_usage_error(martlet, tiny_cpm1, stdin):
    done = martlet("write", tiny_cpm1, stdin=stdin)
    assert done.code == 2
    assert "stdin is empty" in done.stderr


def test_stdin_in_another_encoding_is_named_with_its_first_bad_byte(martlet, tiny_cpm1):
    done = martlet("write", tiny_cpm1, stdin="啊".encode("gb18030"))
    assert done.code == 2
    assert "not UTF-8 text: byte 0xb0 at offset 0" in done.stderr


def test_a_task_that_the_model_was_not_trained_for_is_a_usage_error(martlet, tiny_cpm1):
    done = martlet("chat", tiny_cpm1, stdin="你好")
    assert done.code == 2
    assert "eva" in done.stderr


def test_a_text_longer_than_the_encoder_reads_is_a_usage_error(martlet, tiny_cpm2):
    done = martlet("fill", tiny_cpm2, "天地玄黄，" * 40 + "__")
    assert done.code == 2
    assert "at most 64" in done.stderr
