"""Chats in which a model calls tools: offered, forced, and answered."""

import json
import sys

import pytest

import martlet
from martlet.engine import grammars
from martlet.engine.request import Finished
from martlet.engine.tools import tool_use
from martlet.errors import ContextLengthError, UsageError

from ..chatting import CHATML, write_chatting_model
from ..tokenizers.made_tool_templates import HERMES, LLAMA, MISTRAL, XML

ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 1, "maximum": 5}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
LONG = {"max_position_embeddings": 1024}
ASK = [{"role": "user", "content": "6 + 7?"}]
SAID = [
    "<tool_call>",
    '{"name": "add"',
    ', "arguments": {"a',
    '": 42}}',
    "</tool_call>",
    "<|im_end|>",
]


@pytest.fixture(scope="module")
def caller(make_model, tmp_path_factory):
    """Says a call of ``add``, whatever it is asked."""
    folder = write_chatting_model(
        make_model,
        tmp_path_factory.mktemp("caller"),
        template=HERMES,
        reply=SAID,
        visible=SAID[:-1],
        config=LONG,
    )
    return martlet.load(folder, device="cpu", context=900)


def _asking(calls, *results):
    told = {"role": "assistant", "content": None, "tool_calls": [c.as_dict() for c in calls]}
    pairs = zip(calls, results, strict=False)
    given = [{"role": "tool", "content": r, "tool_call_id": call.id} for call, r in pairs]
    return [*ASK, told, *given]


def _written(model, **options):
    """(text, calls) of a reply as a batch writes it."""
    prepared = model.prepare("chat", ASK, **options)
    events = list(model.generator.generate(prepared.request))
    assert isinstance(events[-1], Finished)
    pieces = [piece for event in events for piece in prepared.take(event)]
    assert all(bool(piece.text) != bool(piece.call) for piece in pieces)
    return "".join(p.text for p in pieces), [p.call for p in pieces if p.call]


def test_a_call_stands_beside_the_answer(caller):
    assert "tools" in caller.chat_controls
    reply = caller.chat(ASK, tools=[ADD])
    assert reply == ""
    (call,) = reply.tool_calls
    assert (call.name, json.loads(call.arguments)) == ("add", {"a": 42})
    stream = caller.chat(ASK, tools=[ADD], stream=True)
    assert [tuple(part) for part in stream.parts()] == [("call", "")]
    assert [call.name for call in stream.tool_calls] == ["add"]


def test_without_tools_the_same_text_is_the_answer(caller):
    reply = caller.chat(ASK)
    assert (reply, reply.tool_calls) == ("".join(SAID[:-1]), ())
    other = {"type": "function", "function": {"name": "sub"}}
    reply = caller.chat(ASK, tools=[other])
    assert (reply, reply.tool_calls) == ("".join(SAID[:-1]), ())
    assert _written(caller, tools=tool_use([ADD], "none")) == ("".join(SAID[:-1]), [])


def test_what_a_tool_gave_is_read_where_it_answers_a_call(caller):
    (call,) = caller.chat(ASK, tools=[ADD]).tool_calls
    assert caller.chat(_asking([call], "13"), tools=[ADD]).tool_calls
    assert caller.chat(_asking([call], "13"))  # tools need not be offered again
    deep = call._replace(arguments=_deep(64)["arguments"])
    assert caller.chat(_asking([deep], "13"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda told, given: [given], "which no call has that is open"),
        (lambda told, given: [told], "the last message has the role assistant"),
        (lambda told, given: [told, *ASK], "nothing was given for the tool call"),
        (lambda told, given: [told, given, given], "which no call has that is open"),
        (lambda told, given: [told, {**given, "tool_call_id": "b"}], "which no call has"),
        (lambda told, given: [told, {**given, "name": "add"}], "field 'name'"),
        (lambda told, given: [told, {**given, "content": None}], "content of message 3"),
        (lambda told, given: [told | {"tool_calls": "add"}, given], "are no list"),
        (lambda told, given: [told | {"tool_calls": 2 * told["tool_calls"]}, given], "the same id"),
        (lambda told, given: [told | {"tool_calls": [{}]}, given], "tool call 1 of message 2"),
        (lambda told, given: [_with(told, id=""), given], "the id of tool call 1 of message 2"),
        (lambda told, given: [_with(told, id="<|im_end|>"), given], "the id of tool call 1"),
        (lambda told, given: [_with(told, type="custom"), given], "no call of a function"),
        (lambda told, given: [_with(told, function={"name": "a b"}), given], "no call of a"),
        (
            lambda told, given: [_with(told, function={"name": "add", "arguments": "[]"}), given],
            "no JSON of an object",
        ),
        (
            lambda told, given: [_with(told, function={"name": "add", "arguments": "{"}), given],
            "no JSON of an object",
        ),
        (lambda told, given: [_with(told, function=_deep(65)), given], "more than 64 deep"),
        (lambda told, given: [_with(told, function=_deep(10**6)), given], "no JSON of an object"),
    ],
)
def test_calls_and_results_that_do_not_belong_together_are_refused(caller, change, words):
    told = {"role": "assistant", "content": "", "tool_calls": [_call("a")]}
    given = {"role": "tool", "content": "13", "tool_call_id": "a"}
    with pytest.raises(UsageError, match=words):
        caller.chat([*ASK, *change(told, given)])


def _call(call_id):
    function = {"name": "add", "arguments": "{}"}
    return {"id": call_id, "type": "function", "function": function}


def _deep(levels):
    return {"name": "add", "arguments": '{"a": ' + "[" * levels + "]" * levels + "}"}


def _with(told, **fields):
    return told | {"tool_calls": [_call("a") | fields]}


def test_tools_that_do_not_fit_are_refused_with_both_numbers(caller):
    large = {"type": "function", "function": {"name": "add", "description": "?" * 2000}}
    with pytest.raises(ContextLengthError, match="the last message and the tools have"):
        caller.chat(ASK, tools=[large])


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "add"}}])
def test_a_call_can_be_forced_and_keeps_to_the_schema(caller, choice):
    pytest.importorskip("llguidance")
    text, (call,) = _written(caller, tools=tool_use([ADD], choice), max_tokens=60, seed=1)
    assert (text, call.name) == ("", "add")
    assert 1 <= json.loads(call.arguments)["a"] <= 5


@pytest.mark.parametrize("template", [MISTRAL, LLAMA], ids=["mistral", "llama"])
def test_other_forms_of_calls_can_be_forced_too(make_model, tmp_path, template):
    pytest.importorskip("llguidance")
    folder = write_chatting_model(
        make_model,
        tmp_path,
        template=template,
        reply=["4", "<|im_end|>"],
        special=["[TOOL_CALLS]"],
        bos_token="<|im_start|>",
        config=LONG,
    )
    model = martlet.load(folder, device="cpu", context=900)
    use = tool_use([ADD], "required", takes_many=False)
    text, calls = _written(model, tools=use, max_tokens=80, seed=1, temperature=1.0)
    assert (text, [call.name for call in calls]) == ("", ["add"])
    assert 1 <= json.loads(calls[0].arguments)["a"] <= 5


def test_without_the_package_for_grammars_no_call_is_forced(caller, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    monkeypatch.setattr(grammars, "_all_grammars", {})
    with pytest.raises(UsageError, match=r'pip install "martlet\[structured\]"'):
        caller.prepare("chat", ASK, tools=tool_use([ADD], "required"))
    assert caller.chat(ASK, tools=[ADD]).tool_calls  # what is not forced needs none


def test_a_forced_call_that_is_cut_off_is_text(caller):
    pytest.importorskip("llguidance")
    text, calls = _written(caller, tools=tool_use([ADD], "required"), max_tokens=3, seed=1)
    assert text.startswith("{") and not calls


def test_tools_leave_no_room_for_what_contradicts_them(caller):
    use = tool_use([ADD], "required")
    with pytest.raises(UsageError, match="calls of tools"):
        caller.prepare("chat", ASK, tools=use, format={"type": "json_object"})
    with pytest.raises(UsageError, match="leave out thinking"):
        caller.prepare("chat", ASK, tools=use, thinking=True)


def test_the_mark_of_a_call_may_be_a_control_token(make_model, tmp_path):
    """It is chosen where tools are offered, and told as text to nobody."""
    said = ["[TOOL_CALLS]", '[{"name": "add"', ', "arguments": {}}', "]", "<|im_end|>"]
    template = MISTRAL.replace("[/INST]", "[/INST]\\n")
    folder = write_chatting_model(
        make_model,
        tmp_path,
        template=template,
        reply=said,
        special=said[:1],
        visible=said[1:-1],
        config=LONG,
        bos_token="<|im_start|>",
    )
    model = martlet.load(folder, device="cpu", context=900)
    reply = model.chat(ASK, tools=[ADD])
    assert (reply, [call.name for call in reply.tool_calls]) == ("", ["add"])
    assert "[TOOL_CALLS]" not in model.chat(ASK, max_tokens=3)


@pytest.mark.parametrize(
    ("template", "words"), [(CHATML, "takes no tools"), (XML, "a form that is not known here")]
)
def test_a_model_that_does_not_call_tools_refuses_them(make_model, tmp_path, template, words):
    folder = write_chatting_model(
        make_model, tmp_path, template=template, reply=["4", "<|im_end|>"]
    )
    model = martlet.load(folder, device="cpu")
    assert "tools" not in model.chat_controls
    with pytest.raises(UsageError, match=words):
        model.chat(ASK, tools=[ADD])
    told = {"role": "assistant", "content": "", "tool_calls": [_call("a")]}
    with pytest.raises(UsageError, match=words):
        model.chat([*ASK, told, {"role": "tool", "content": "13", "tool_call_id": "a"}])
    assert model.chat(ASK, tools=[]) == "4"


def test_eva_has_no_template_and_no_tools(tiny_eva):
    with pytest.raises(UsageError, match="has no chat template"):
        martlet.load(tiny_eva, device="cpu").chat(ASK, tools=[ADD])
