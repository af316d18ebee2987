import pytest

import martlet
from martlet.engine.dialogue import answer_turns
from martlet.engine.request import SamplingParams
from martlet.errors import ContextLengthError, UsageError

SEP, START = 4, 29810


@pytest.fixture(scope="module")
def eva(tiny_eva):
    return martlet.load(tiny_eva, device="cpu")


def _messages(*turns):
    roles = ("user", "assistant")
    return [
        {"role": roles[(len(turns) - 1 - i) % 2], "content": turn} for i, turn in enumerate(turns)
    ]


def _encoder_ids(model, messages, **options):
    return list(
        answer_turns(model._model, messages, SamplingParams(), **options).context.encoder_ids
    )


def test_turns_are_joined_and_the_start_token_asks_for_an_answer(eva):
    hello, name = eva.tokenizer.encode("你好"), eva.tokenizer.encode("你叫什么")
    request = answer_turns(eva._model, _messages("你好", "你好", "你叫什么"), SamplingParams())
    assert list(request.context.encoder_ids) == [*hello, SEP, *hello, SEP, *name, SEP, START]
    assert request.context.decoder_ids == (START,)
    assert request.eos_ids == {SEP}


def test_the_oldest_turns_are_left_out_as_a_whole(eva):
    turns = [f"第{n}句话很长很长很长很长" for n in "一二三四五六七八九"]
    lengths = [len(eva.tokenizer.encode(turn)) + 1 for turn in turns]
    kept = [*eva.tokenizer.encode(turns[-2]), SEP, *eva.tokenizer.encode(turns[-1]), SEP, START]
    exactly = sum(lengths[-2:]) + 1
    assert _encoder_ids(eva, _messages(*turns), max_input_tokens=exactly) == kept
    assert _encoder_ids(eva, _messages(*turns), max_input_tokens=exactly + 1) == kept
    assert len(_encoder_ids(eva, _messages(*turns), max_input_tokens=exactly - 1)) < len(kept)


def test_at_most_eight_turns_are_read(eva):
    ids = _encoder_ids(eva, _messages(*["好"] * 11))
    assert ids.count(SEP) == 8


def test_the_models_own_limit_is_that_of_the_published_program(eva):
    ids = _encoder_ids(eva, _messages(*["天空是蔚蓝色，窗外有千纸鹤和云"] * 8 * 2))
    assert len(ids) <= 128
    assert eva._model.max_input_tokens == 128


def test_a_last_message_that_does_not_fit_is_refused_with_both_numbers(eva):
    with pytest.raises(ContextLengthError, match=r"\d+ tokens .* at most 128"):
        eva.chat(_messages("天空是蔚蓝色，" * 40))


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "at least one message"),
        ("你好", "list"),
        ([{"role": "system", "content": "x"}, {"role": "user", "content": "y"}], "role system"),
        ([{"role": "robot", "content": "y"}], "'robot'"),
        ([{"role": "user"}], "exactly the fields"),
        ([{"role": "user", "content": "x", "name": "y"}], "exactly the fields"),
        ([{"role": "user", "content": " "}], "no text"),
        ([{"role": "user", "content": None}], "no text"),
        ([["user", "x"]], "exactly the fields"),
        ([{"role": "assistant", "content": "x"}], "the assistant's"),
    ],
)
def test_messages_that_cannot_be_honoured_are_refused(eva, messages, what):
    with pytest.raises(UsageError, match=what):
        eva.chat(messages)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "128"])
def test_an_input_limit_that_is_no_number_of_tokens_is_refused(eva, limit):
    with pytest.raises(UsageError, match=r"^max_input_tokens is"):
        eva.chat([{"role": "user", "content": "你好"}], max_input_tokens=limit)


def test_an_answer_has_no_control_token_and_streams_as_it_is(eva):
    answer = eva.chat(_messages("你好"), max_tokens=30, seed=5)
    pieces = list(eva.chat(_messages("你好"), max_tokens=30, seed=5, stream=True))
    assert "".join(pieces) == answer
    assert all(pieces)
    request = answer_turns(eva._model, _messages("你好"), SamplingParams())
    mask = request.constraint.suppressed()
    control = eva.tokenizer.special.control_ids()
    assert set(mask.nonzero().flatten().tolist()) == control - {SEP}


def test_a_prompt_to_eva_is_a_turn(eva):
    assert eva.generate("你好", max_tokens=9, seed=5) == eva.chat(
        _messages("你好"), max_tokens=9, seed=5
    )


def test_writers_and_fillers_cannot_chat(tiny_cpm1, tiny_cpm2):
    for folder in (tiny_cpm1, tiny_cpm2):
        model = martlet.load(folder, device="cpu")
        with pytest.raises(UsageError, match=r"not chat; .*family eva can, eva-mini for one"):
            model.chat(_messages("你好"))
