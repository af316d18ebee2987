"""Chats with a model's own template: thoughts, ends, defaults, and what is left out."""

import pytest

import martlet
from martlet.engine.chat import ChatOptions, chat
from martlet.engine.request import SamplingParams
from martlet.errors import ContextLengthError, UsageError

from ..chatting import CHATML, write_chatting_model

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def thinker(make_model, tmp_path_factory):
    folder = write_chatting_model(make_model, tmp_path_factory.mktemp("thinker"))
    return martlet.load(folder, device="cpu")


@pytest.fixture(scope="module")
def plain(make_model, tmp_path_factory):
    folder = write_chatting_model(
        make_model,
        tmp_path_factory.mktemp("plain"),
        template=CHATML,
        reply=["4", "2", "<|im_end|>"],
        generation={"temperature": None, "do_sample": False, "max_new_tokens": 9},
    )
    return martlet.load(folder, device="cpu")


def test_a_model_with_a_template_can_chat_and_does_that_best(thinker):
    assert thinker.tasks == ("chat", "write")
    assert thinker.thinks
    assert thinker.chat_controls == ("system", "thinking")


def test_a_model_says_what_its_chats_take_beside_turns(plain, tiny_eva):
    assert plain.chat_controls == ("system",)
    assert martlet.load(tiny_eva, device="cpu").chat_controls == ()


def test_the_answer_comes_without_the_thoughts_which_stand_beside_it(thinker):
    reply = thinker.chat(HELLO)
    assert (reply, reply.thoughts) == ("42", "hm")
    assert thinker.last_stats.finish_reason == "eos"


def test_a_stream_gives_the_answer_or_both_parts(thinker):
    stream = thinker.chat(HELLO, stream=True)
    assert "".join(stream) == "42"
    assert stream.thoughts == "hm"
    parts = list(thinker.chat(HELLO, stream=True).parts())
    assert parts == [("thought", "h"), ("thought", "m"), ("answer", "4"), ("answer", "2")]


def test_thinking_can_be_turned_off_where_there_is_a_switch(thinker, plain):
    """The prompt then ends with the thoughts' end and line breaks, from where the answer comes."""
    prompt = chat(thinker._model, HELLO, SamplingParams(), ChatOptions(thinking=False))
    assert thinker.tokenizer.decode(prompt.request.context.decoder_ids).endswith("</think>\n\n")
    assert thinker.chat(HELLO, thinking=False) == "42"
    assert plain.chat(HELLO, thinking=False) == "42"  # it never thinks
    with pytest.raises(UsageError, match="no switch for thinking"):
        plain.chat(HELLO, thinking=True)
    with pytest.raises(UsageError, match="thinking is 'yes'"):
        plain.chat(HELLO, thinking="yes")


def test_defaults_are_those_of_generation_config(plain, thinker):
    params = plain.sampling_params("chat")
    assert (params.temperature, params.max_tokens) == (0.0, 9)
    params = thinker.sampling_params("chat")
    assert (params.temperature, params.max_tokens) == (0.0, 256)  # what there is memory for
    params = thinker.sampling_params("write")
    assert (params.temperature, params.max_tokens) == (0.0, 200)


def test_a_text_ends_at_any_of_the_tokens_that_the_files_name(make_model, tmp_path):
    folder = write_chatting_model(
        make_model,
        tmp_path,
        template=CHATML,
        reply=["4", "2", "h"],
        config={"eos_token_id": 7},
        generation={"eos_token_id": [9, 1000]},
        eos_token="<|endoftext|>",
    )
    model = martlet.load(folder, device="cpu")
    own = model.tokenizer.special.eos
    assert model._model.end_ids == {7, 9, own}
    request = chat(model._model, HELLO, SamplingParams(), ChatOptions()).request
    assert request.eos_ids == {7, 9, own, *model._model.template.end_ids}
    assert len(model._model.template.end_ids) == 1
    suppressed = set(request.constraint.suppressed().nonzero().flatten().tolist())
    assert suppressed == model.tokenizer.special.control_ids() - request.eos_ids


def _turns(*contents, system=None):
    roles = ("user", "assistant")
    told = [] if system is None else [{"role": "system", "content": system}]
    return told + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


def _read(model, messages, **options):
    request = chat(model._model, messages, SamplingParams(max_tokens=8), ChatOptions(**options))
    return model.tokenizer.decode(request.request.context.decoder_ids)


def test_the_oldest_turns_are_left_out_as_a_whole_and_the_system_stays(plain):
    messages = _turns("one " * 9, "two " * 9, "three " * 9, "four " * 9, "five", system="Be brief.")
    whole = _read(plain, messages)
    assert all(word in whole for word in ("one", "two", "three", "four", "five", "Be brief."))
    for limit in range(40, 200, 7):
        read = _read(plain, messages, max_input_tokens=limit)
        assert "Be brief." in read
        assert "five" in read
        assert ("one" in read) == ("two" in read)
        assert ("three" in read) == ("four" in read)
        assert "three" in read or "one" not in read
    assert "three" not in _read(plain, messages, max_input_tokens=40)


def test_room_for_the_reply_is_kept_from_old_turns_but_not_from_the_last(plain):
    long = "one " * 40
    tokens = len(
        chat(plain._model, _turns(long), SamplingParams(), ChatOptions()).request.prompt_ids
    )
    messages = _turns("hm", "hm", long)
    with_room = SamplingParams(max_tokens=1000)

    def read(context_tokens):
        options = ChatOptions(context_tokens=context_tokens)
        return chat(plain._model, messages, with_room, options).request.prompt_ids

    assert len(read(2 * tokens)) > tokens
    assert len(read(tokens + 12)) == tokens
    assert len(read(tokens + 1)) == tokens
    with pytest.raises(ContextLengthError, match=rf"has {tokens} tokens .* at most {tokens - 1}"):
        read(tokens)


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], "at least one message"),
        ("hello", "list"),
        ([{"role": "robot", "content": "y"}], "'robot'"),
        ([{"role": "tool", "content": "y"}], "which no call has that is open"),
        ([{"role": "user"}], "the fields role and content"),
        ([{"role": "user", "content": "x", "name": "y"}], "the field 'name'"),
        ([{"role": "user", "content": "x", "reasoning_content": "y"}], "'reasoning_content'"),
        ([{"role": "user", "content": None}], "the content of message 1 is not a string"),
        ([["user", "x"]], "the fields role and content"),
        ([*HELLO, {"role": "assistant", "content": "x"}], "the role assistant; end with one"),
        ([{"role": "system", "content": "x"}], "the role system; end with one"),
    ],
)
def test_messages_that_cannot_be_honoured_are_refused(plain, messages, what):
    with pytest.raises(UsageError, match=what):
        plain.chat(messages)


def test_a_format_leaves_no_room_for_thoughts(thinker):
    prepared = thinker.prepare("chat", HELLO, format={"type": "json_object"})
    assert thinker.tokenizer.decode(prepared.request.context.decoder_ids).endswith("</think>\n\n")
    with pytest.raises(UsageError, match="no room for thoughts"):
        thinker.prepare("chat", HELLO, format={"type": "json_object"}, thinking=True)


def test_a_reply_in_a_batch_is_split_as_well(thinker):
    prepared = thinker.prepare("chat", HELLO)
    pieces = [
        piece
        for event in thinker.generator.generate(prepared.request)
        for piece in prepared.take(event)
    ]
    assert "".join(piece.text for piece in pieces if piece.is_thought) == "hm"
    assert "".join(piece.text for piece in pieces if not piece.is_thought) == "42"
