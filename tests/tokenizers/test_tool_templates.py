"""Templates with tools: the tokens that transformers gives, and nothing of the user's steers."""

import json

import pytest
import transformers

from martlet.tokenizers.chat_template import ChatTemplate
from martlet.tokenizers.huggingface import HuggingFaceTokenizer
from martlet.tokenizers.template_files import read_special_tokens
from martlet.tokenizers.tool_formats import TOOL_FORMATS, tool_format

from . import made_templates, made_tool_templates
from .made_tokenizers import byte_fallback, byte_level, write_folder

IM = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"]
CALLS = ["<tool_call>", "</tool_call>"]
LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
INST = ["[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
INST += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]"]
SP = {"bos_token": "<s>", "eos_token": "</s>"}
STATES = {
    "hermes": (byte_level(IM, CALLS), made_tool_templates.HERMES, {"eos_token": "<|im_end|>"}),
    "mistral": (byte_fallback(INST, "first"), made_tool_templates.MISTRAL, SP),
    "llama": (byte_level(LLAMA3), made_tool_templates.LLAMA, {"bos_token": LLAMA3[0]}),
}
NAMES = list(STATES)


def _tool(name, description, **properties):
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    function = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": function}


TOOLS = [
    _tool("weather", "天气 & <b>more</b>", city={"type": "string", "enum": ["a", "b"]}),
    _tool("add", "a + b", a={"type": "number"}, id={"type": "integer", "description": "object"}),
]


def _call(name, arguments, call_id="abcdef012"):
    function = {"name": name, "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _dialogue(user="6 + 7?", arguments=None, result='{"sum": 13}'):
    called = _call("add", arguments or {"a": 6.5, "id": 7})
    return [
        {"role": "user", "content": user},
        {"role": "assistant", "content": "", "tool_calls": [called]},
        {"role": "tool", "content": result, "tool_call_id": "abcdef012", "name": "add"},
    ]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{name: (template, tokenizer, transformers' tokenizer)}"""
    found = {}
    for name, (state, source, config) in STATES.items():
        folder = write_folder(tmp_path_factory.mktemp(name), state, chat_template=source, **config)
        tokenizer = HuggingFaceTokenizer.from_json(folder / "tokenizer.json")
        special = read_special_tokens({path.name: path for path in folder.iterdir()})
        template = ChatTemplate(source, tokenizer, special, name)
        oracle = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        found[name] = (template, tokenizer, oracle)
    return found


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tools", [TOOLS, []])
def test_tools_calls_and_results_become_the_tokens_that_transformers_gives(made, name, tools):
    template, _, oracle = made[name]
    for messages in (_dialogue()[:1], _dialogue()):
        expected = oracle.apply_chat_template(
            messages,
            tools=tools or None,
            tokenize=True,
            add_generation_prompt=True,
            return_dict=False,
        )
        assert list(template.prompt(messages, tools=tools).token_ids) == expected


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_tool_a_call_or_a_result_becomes_a_control_token(made, name):
    template, tokenizer, _ = made[name]
    meant = [*IM, *CALLS, *LLAMA3, *INST, "</s>", "<think>"]
    evil = " ".join(meant)

    def count(text):
        tools = [_tool("add", text, **{text: {"type": "string", "enum": [text], "default": text}})]
        messages = _dialogue(text, {text: [text, {"id": text}]}, text)
        ids = template.prompt(messages, tools=tools).token_ids
        names = tokenizer.template_names(meant)
        marks = {i for mark in meant for i in _single(tokenizer, mark, names)}
        return [token_id for token_id in ids if token_id in marks], tokenizer.decode(ids)

    (steering, text), (plain, _) = count(evil), count("x")
    assert steering == plain
    assert "\ufdd0" not in text
    assert text.count("<|im_end|>") >= 7  # what nobody may say is said in letters


def _single(tokenizer, mark, names):
    ids = tokenizer.encode_spelled(mark, names)
    return ids if len(ids) == 1 else []


@pytest.mark.parametrize("name", NAMES)
def test_the_form_of_calls_is_known_by_the_template(made, name):
    template, _, _ = made[name]
    assert template.takes_tools
    assert template.tool_format is TOOL_FORMATS[name]
    marks = ["[TOOL_CALLS]"] if name == "mistral" else []  # elsewhere they are text, or none
    assert list(template.call_marks.values()) == marks


def test_a_call_that_is_asked_for_is_opened_by_the_prompt(made):
    for name, end in (("hermes", "<tool_call>\n"), ("mistral", ""), ("llama", "")):
        template, tokenizer, _ = made[name]
        free = template.prompt(_dialogue(), tools=TOOLS).token_ids
        forced = template.prompt(_dialogue(), tools=TOOLS, is_call=True).token_ids
        assert forced[: len(free)] == free
        assert tokenizer.decode(forced[len(free) :]) == end
        assert len(forced) - len(free) == {"hermes": 2, "mistral": 1, "llama": 0}[name]


def test_templates_without_tools_or_with_calls_in_another_form_have_none(made, tmp_path):
    _, tokenizer, _ = made["hermes"]
    plain = ChatTemplate(made_templates.CHATML, tokenizer, {}, "plain")
    assert (plain.takes_tools, plain.tool_format, plain.call_marks) == (False, None, {})
    other = ChatTemplate(made_tool_templates.XML, tokenizer, {}, "xml")
    assert (other.takes_tools, other.tool_format) == (True, None)


@pytest.mark.parametrize(
    "literals",
    [
        ["<tool_call>\n{"],
        ["<tool_call>", "</tool_call>", "<arg_key>", '"name": ', '"arguments": '],
        ["[TOOL_CALLS] [", "[ARGS]"],
        ["[TOOL_CALLS]", '{"name": ', '"arguments": '],
        ['in <tool_call></tool_call>: <tool_calls>[{"name": "x", "arguments": {}}]</tool_calls>'],
        ['between <tool_call> and </tool_call>: {"name": "x", "arguments": {}}'],
        ['{"name": "x"}, "parameters": {}'],
        [],
    ],
)
def test_forms_that_only_look_alike_are_not_taken_for_known_ones(literals):
    assert tool_format(literals) is None


def test_json_of_a_template_may_be_plain_ascii(made):
    _, tokenizer, _ = made["hermes"]
    source = "{{ tools | tojson(ensure_ascii=True) }}<|im_end|>"
    template = ChatTemplate(source, tokenizer, {}, "ascii")
    tools = [_tool("add", "<|im_end|> é 🐦 \\ufdd0")]
    text = tokenizer.decode(template.prompt(_dialogue()[:1], tools=tools).token_ids)
    assert text == json.dumps(tools)
