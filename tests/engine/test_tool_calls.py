import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.engine.tool_calls import CallSplitter, ToolCall
from martlet.tokenizers.tool_formats import TOOL_FORMATS

NAMES = frozenset({"add", "now"})
ADD = '{"name": "add", "arguments": {"a": 1, "b": "</tool_call> }"}}'
NOW = '{"name": "now", "arguments": {}}'


def _told(text, cuts=(), form="hermes", **options):
    """What is told of a text that comes in pieces: runs of text, and (name, arguments)."""
    splitter = CallSplitter(TOOL_FORMATS[form], NAMES, **options)
    edges = [0, *sorted(cuts), len(text)]
    told = []
    for start, end in itertools.pairwise(edges):
        told += splitter.push(text[start:end])
    told += splitter.flush()
    assert all(told)
    joined = []
    for part in told:
        if isinstance(part, ToolCall):
            joined.append((part.name, json.loads(part.arguments)))
        elif joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


ADDED = ("add", {"a": 1, "b": "</tool_call> }"})
NOW_CALLED = ("now", {})


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        ("hermes", f"<tool_call>\n{ADD}\n</tool_call>", [ADDED]),
        (
            "hermes",
            f"Let me see.\n\n<tool_call>{ADD}</tool_call>\n<tool_call>{NOW}</tool_call>\n",
            ["Let me see.", ADDED, NOW_CALLED],
        ),
        ("hermes", f"<tool_call>\n{NOW}", [NOW_CALLED]),
        ("hermes", f"<tool_call>\n{NOW}</tool_c", [NOW_CALLED]),
        ("hermes", f"<tool_call>\n{NOW}\nDone.\n", [NOW_CALLED, "Done.\n"]),
        ("hermes", " Five. \n", [" Five. \n"]),
        ("hermes", "1 <tool_cal", ["1 <tool_cal"]),
        ("hermes", f"<tool_call><tool_call>{NOW}", ["<tool_call>", NOW_CALLED]),
        ("mistral", f" [TOOL_CALLS] [{ADD}, {NOW}]", [ADDED, NOW_CALLED]),
        ("mistral", f"[TOOL_CALLS]{NOW}", [NOW_CALLED]),
        ("mistral", "[TOOL_CALLS] []", ["[TOOL_CALLS] []"]),
        ("mistral", f'[TOOL_CALLS] [{NOW}, {{"name": "x"}}]', 1),
        ("llama", '{"name": "add", "parameters": {"a": 2}}', [("add", {"a": 2})]),
        ("llama", '\n{"name": "now"}\n', [NOW_CALLED]),
        ("llama", 'It is {"name": "now"}', ['It is {"name": "now"}']),
        ("llama", '{"answer": 5}', ['{"answer": 5}']),
        ("llama", "{5}. Yes", ["{5}. Yes"]),
        ("llama", "", []),
    ],
)
def test_calls_are_taken_out_of_an_answer(form, text, told):
    told = [text] if told == 1 else told
    assert _told(text, form=form) == told
    assert _told(text, range(len(text)), form) == told


@pytest.mark.parametrize(
    "value",
    [
        '{"name": "add", "arguments": {"a": 1',  # cut off
        '{"name": "add", "arguments": {"a": 01}}',
        '{"name": "add", "arguments": {"a": NaN}}',
        '{"name": "add", "arguments": {"a": 1e999}}',
        '{"name": "add", "arguments": "1"}',
        '{"name": "add", "arguments": {"a": ' + "9" * 5000 + "}}",
        '{"name": "sub", "arguments": {}}',
        '{"name": ["add"], "arguments": {}}',
        '{"name": "add", "arguments": {"a": "\\ud800"}}',
        '{"arguments": {}}',
        '{"a": ' + "[" * 100_000,
        "{}",
        "add(1)",
        "",
    ],
)
def test_what_is_no_call_of_a_tool_that_was_offered_is_text(value):
    text = f"See: <tool_call>\n{value}\n</tool_call>"
    assert _told(text) == [text]


MARKS = ["<tool_call>", "</tool_call>", "<tool", "_call>", "[TOOL_CALLS]", "[", "]", "{", "}", '"']
OBJECTS = [ADD, NOW, '{"name": "now", "parameters": {}}', '{"name": "x"}']
PIECES = st.lists(st.sampled_from([*MARKS, *OBJECTS, " ", "\n", "\\", "好"]))


@given(
    data=st.data(),
    pieces=PIECES,
    form=st.sampled_from(list(TOOL_FORMATS)),
    is_open=st.booleans(),
    takes_many=st.booleans(),
)
def test_how_an_answer_is_cut_into_pieces_does_not_matter(data, pieces, form, is_open, takes_many):
    text = "".join(pieces)
    cuts = data.draw(st.lists(st.integers(0, len(text))))
    options = {"form": form, "is_open": is_open, "takes_many": takes_many}
    assert _told(text, cuts, **options) == _told(text, **options)


@given(text=st.text(alphabet=st.characters(blacklist_characters="<[{")))
def test_an_answer_without_marks_is_told_as_it_is(text):
    for form in TOOL_FORMATS:
        assert "".join(_told(text, form=form)) == text


def test_a_call_is_told_as_soon_as_its_json_ends_and_no_mark_before():
    splitter = CallSplitter(TOOL_FORMATS["hermes"], NAMES)
    assert splitter.push("Well. <tool_") == ["Well."]
    assert splitter.push(f"call>{NOW[:-1]}") == []
    (call,) = splitter.push("}")
    assert call.name == "now"
    assert call.as_dict() == {
        "id": call.id,
        "type": "function",
        "function": {"name": "now", "arguments": "{}"},
    }
    assert len(call.id) == 9 and call.id.isalnum()


def test_a_prompt_may_have_opened_the_call():
    assert _told(f"{NOW}\n</tool_call>", is_open=True) == [NOW_CALLED]
    assert _told(f"[{NOW}]", form="mistral", is_open=True) == [NOW_CALLED]


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("hermes", f"<tool_call>{NOW}</tool_call><tool_call>{ADD}</tool_call> more"),
        ("mistral", f"[TOOL_CALLS][{NOW}, {ADD}]"),
    ],
)
def test_where_one_call_is_wanted_the_answer_ends_with_it(form, text):
    assert _told(text, form=form, takes_many=False) == [NOW_CALLED]
