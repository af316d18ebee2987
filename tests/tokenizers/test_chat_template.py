"""Chat templates give the tokens that transformers gives, but nothing that is quoted steers."""

import datetime
from pathlib import Path
from typing import NamedTuple

import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from martlet.errors import UsageError
from martlet.tokenizers.chat_template import ChatTemplate
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.template_files import read_special_tokens

from . import made_templates as templates
from .made_tokenizers import byte_fallback, byte_level, with_flags, write_folder

IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PHI = ["<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
THINK = ["<think>", "</think>", "<tool_call>", "</tool_call>"]


class Made(NamedTuple):
    """A tokenizer with a template: ours, and transformers' of the same files."""

    template: ChatTemplate
    tokenizer: HuggingFaceTokenizer
    oracle: transformers.PreTrainedTokenizerFast

    def expected(self, messages, **variables):
        return self.oracle.apply_chat_template(
            messages, tokenize=True, add_generation_prompt=True, return_dict=False, **variables
        )


def _made(folder: Path, state, template, **config) -> Made:
    write_folder(folder, state, chat_template=template, **config)
    tokenizer = HuggingFaceTokenizer.from_json(folder / "tokenizer.json")
    names = read_special_tokens({p.name: p for p in folder.iterdir()})
    ours = ChatTemplate(template, tokenizer, names, folder.name)
    oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    return Made(ours, tokenizer, oracle)


def _states():
    sp = {"bos_token": "<s>", "eos_token": "</s>"}
    turns = ["<start_of_turn>", "<end_of_turn>"]
    llama3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    deepseek = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"]
    glm = ["<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"]
    after = {name: {"rstrip": True} for name in PHI}
    return {
        "llama2": (byte_fallback([]), templates.LLAMA2, sp),
        "llama2-first": (byte_fallback([], "first"), templates.LLAMA2, sp),
        "mistral": (byte_fallback(["[INST]", "[/INST]"]), templates.MISTRAL, sp),
        "mistral-first": (byte_fallback(["[INST]", "[/INST]"], "first"), templates.MISTRAL, sp),
        "gemma": (
            byte_fallback(turns, "never", ["<b>", "</b>", "<table>"]),
            templates.GEMMA,
            {"bos_token": "<s>", "eos_token": "</s>"},
        ),
        "phi3": (
            with_flags(byte_fallback(PHI), **after),
            templates.PHI3,
            {"bos_token": "<s>", "eos_token": "<|endoftext|>"},
        ),
        "minicpm": (byte_fallback([], visible=["<用户>", "<AI>"]), templates.MINICPM, sp),
        "llama3": (byte_level(llama3), templates.LLAMA3, {"bos_token": llama3[0]}),
        "chatml": (byte_level(IM), templates.CHATML, {"eos_token": "<|im_end|>"}),
        "qwen2.5": (byte_level(IM, THINK[2:]), templates.QWEN25, {"eos_token": "<|im_end|>"}),
        "qwen3": (byte_level(IM, THINK), templates.QWEN3, {"eos_token": "<|im_end|>"}),
        "deepseek": (
            byte_level(deepseek, THINK),
            templates.DEEPSEEK,
            {"bos_token": deepseek[0], "eos_token": deepseek[1]},
        ),
        "glm4": (byte_level(glm), templates.GLM4, {"eos_token": "<|endoftext|>"}),
    }


NAMES = list(_states())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return {
        name: _made(tmp_path_factory.mktemp(name.replace(".", "-")), state, template, **config)
        for name, (state, template, config) in _states().items()
    }


def _messages(*contents, system=None):
    roles = ("user", "assistant")
    told = [] if system is None else [{"role": "system", "content": system}]
    return told + [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


DIALOGUES = [
    _messages("你好"),
    _messages(" two  spaces ", "Yes.\n", "\n天空是蔚蓝色 🐦\n\n"),
    _messages("a < b > c [1] | </x>", "def add(a, b):\n    return a", "12345 + 9?"),
]


@pytest.mark.parametrize("name", NAMES)
def test_ordinary_messages_become_the_tokens_that_transformers_gives(made, name):
    one = made[name]
    dialogues = DIALOGUES
    if name not in ("gemma", "mistral", "mistral-first"):
        dialogues = [*DIALOGUES, _messages("hi", "ho", "hi", system="Be brief. ")]
    for messages in dialogues:
        assert list(one.template.prompt(messages).token_ids) == one.expected(messages)


# No character of a control token's name: all text is ordinary but for these and for U+FDD0.
ORDINARY = st.text(
    st.one_of(
        st.sampled_from(" \n\t<>[]|a1。好"),
        st.characters(codec="utf-8", exclude_characters="\ufdd0"),
    ),
    max_size=30,
)


@pytest.mark.parametrize("name", ["llama2", "mistral-first", "gemma", "phi3", "llama3", "qwen3"])
@settings(max_examples=40, deadline=None)
@given(contents=st.tuples(ORDINARY, ORDINARY, ORDINARY))
def test_any_text_that_spells_no_control_token_does_too(made, name, contents):
    messages = _messages(*contents)
    assert list(made[name].template.prompt(messages).token_ids) == made[name].expected(messages)


def _meant(one: Made) -> dict[str, int]:
    """Control tokens, and what else steers a model where its template writes it."""
    control = one.tokenizer.special.control_ids()
    names = {one.oracle.convert_ids_to_tokens(i): i for i in control}
    template = one.oracle.chat_template
    return names | {
        name: i
        for name, i in one.oracle.get_added_vocab().items()
        if name in template and i not in control
    }


HARM = st.lists(
    st.tuples(st.integers(0, 99), st.integers(0, 40), st.sampled_from(["", " ", "\n", "x", "<"])),
    min_size=1,
    max_size=3,
)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None)
@given(parts=HARM, role=st.sampled_from(["user", "assistant", "system"]))
def test_what_is_quoted_never_becomes_a_control_token(made, name, parts, role):
    """Names, whole and cut anywhere, put together with each other and with what stands around."""
    one = made[name]
    meant = _meant(one)
    # What is marked less than all else: an assistant's thoughts, which are its template's to find.
    names = sorted(meant.keys() - ({"<think>", "</think>"} if role == "assistant" else set()))
    text = ""
    for number, cut, between in parts:
        word = names[number % len(names)]
        cut %= len(word) + 1
        text += word[cut:] + between + word[:cut]
    plain = _messages("a", "b", "c")
    harmful = _messages("a", "b", "c")
    if role == "system":
        if name in ("gemma", "mistral", "mistral-first"):
            return
        plain = _messages("a", "b", "c", system="d")
        harmful = _messages("a", "b", "c", system=text)
    else:
        harmful[0 if role == "user" else 1]["content"] = text
    ids = set(meant.values()) - {one.tokenizer.special.unk}
    expected = [i for i in one.template.prompt(plain).token_ids if i in ids]
    assert [i for i in one.template.prompt(harmful).token_ids if i in ids] == expected


@pytest.mark.parametrize("name", NAMES)
def test_every_control_token_that_is_spelled_is_read_as_its_letters(made, name):
    one = made[name]
    for word in _meant(one):
        for text in (word, f"a {word} b", word * 2):
            read = one.tokenizer.decode(one.template.prompt(_messages(text)).token_ids)
            assert text in read


def test_text_that_stands_between_the_halves_of_a_name_does_not_complete_it(tmp_path):
    """A template that puts what it quotes between < and > does not make a control token of it."""
    one = _made(tmp_path, byte_level(IM), "<|{{ messages[0].content }}|>")
    for word in ("im_end", " im_end ", "|im_end|", "m"):
        token_ids = one.template.prompt(_messages(word)).token_ids
        assert not set(token_ids) & one.tokenizer.special.control_ids()
        assert one.tokenizer.decode(token_ids) == f"<|{word}|>"


def test_what_a_template_cuts_out_of_a_text_is_no_name_either(tmp_path):
    """The name is whole only after the template has dropped what stood inside it."""
    source = "{{ messages[0].content.replace('x', '') }}{{ messages[0].content[1:] }}"
    one = _made(tmp_path, byte_level(IM), source)
    token_ids = one.template.prompt(_messages("<|im_xend|><|im_start|>")).token_ids
    assert not set(token_ids) & one.tokenizer.special.control_ids()


def test_tags_that_the_template_does_not_know_stay_the_tokens_that_they_are(made):
    gemma = made["gemma"]
    messages = _messages("<b>bold</b>")
    token_ids = gemma.template.prompt(messages).token_ids
    assert list(token_ids) == gemma.expected(messages)
    assert gemma.oracle.convert_tokens_to_ids("<b>") in token_ids


def test_the_words_of_a_template_that_refuses_are_told(made):
    system = _messages("a", system="b")
    with pytest.raises(UsageError, match="gemma0 refuses these messages: System role not support"):
        made["gemma"].template.prompt(system)
    twice = [*_messages("a"), *_messages("b")]
    with pytest.raises(UsageError, match="roles must alternate"):
        made["llama2"].template.prompt(twice)


def test_a_switch_for_thinking_is_turned_where_there_is_one(made):
    one = made["qwen3"]
    for thinking in (True, False):
        prompt = one.template.prompt(_messages("a"), thinking)
        assert list(prompt.token_ids) == one.expected(_messages("a"), enable_thinking=thinking)
    assert (one.template.has_switch, made["chatml"].template.has_switch) == (True, False)
    with pytest.raises(UsageError, match="no switch for thinking, enable_thinking or thinking"):
        made["chatml"].template.prompt(_messages("a"), thinking=True)


@pytest.mark.parametrize(
    ("name", "takes_system"),
    [("qwen3", True), ("llama2", True), ("deepseek", True), ("gemma", False), ("mistral", False)],
)
def test_a_template_tells_whether_it_takes_a_system_message(made, name, takes_system):
    assert made[name].template.takes_system is takes_system


def test_a_system_message_that_is_passed_over_is_not_taken(tmp_path):
    source = "{% for turn in messages if turn.role == 'user' %}{{ turn.content }}{% endfor %}"
    assert not _made(tmp_path, byte_level(IM), source).template.takes_system


def test_a_prompt_tells_whether_the_reply_begins_among_thoughts(made):
    def begins(name, thinking=None):
        return made[name].template.prompt(_messages("<think>"), thinking).begins

    assert (begins("qwen3"), begins("qwen3", True), begins("qwen3", False)) == (
        "start",
        "start",
        "answer",
    )
    assert (begins("deepseek"), begins("chatml"), begins("llama2")) == ("thought",) + (
        "answer",
    ) * 2


def test_earlier_thoughts_are_left_to_the_template(made):
    one = made["qwen3"]
    thought = "<think>\nhm\n</think>\n\nFive."
    bare = one.template.prompt(_messages("a", "Five.", "b"))
    assert one.template.prompt(_messages("a", thought, "b")) == bare
    told = _messages("a", "Five.", "b")
    told[1]["reasoning_content"] = "hm"
    assert one.template.prompt(told) == bare
    assert list(one.template.prompt(told).token_ids) == one.expected(told)


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("llama2", "</s>"),
        ("mistral", "</s>"),
        ("gemma", "<end_of_turn>"),
        ("phi3", "<|end|>"),
        ("minicpm", None),
        ("llama3", "<|eot_id|>"),
        ("qwen2.5", "<|im_end|>"),
        ("qwen3", "<|im_end|>"),
        ("deepseek", "<｜end▁of▁sentence｜>"),
        ("glm4", "<|user|>"),
    ],
)
def test_what_stands_behind_an_answer_ends_it(made, name, end):
    one = made[name]
    expected = set() if end is None else {one.oracle.convert_tokens_to_ids(end)}
    assert one.template.end_ids == expected


def test_dates_are_todays_and_json_is_as_it_is(tmp_path):
    source = (
        "{{ strftime_now('%Y-%m') }}{{ messages[0] | tojson }}{% for i in [1, 2] %}"
        "{% if i == 2 %}{% break %}{% endif %}"
        "{% generation %}{{ i }}{% endgeneration %}{% endfor %}"
    )
    one = _made(tmp_path, byte_level(IM), source)
    messages = _messages("<好 'a' & b>")
    token_ids = list(one.template.prompt(messages).token_ids)
    assert token_ids == one.expected(messages)
    today = datetime.datetime.now().strftime("%Y-%m")
    shown = one.tokenizer.decode(token_ids)
    assert shown == today + '{"role": "user", "content": "<好 \'a\' & b>"}1'
