import pytest

from martlet.engine.schema_check import schema_of
from martlet.engine.tools import MAX_TOOLS, ToolUse, tool_use
from martlet.errors import UsageError
from martlet.tokenizers.tool_formats import TOOL_FORMATS


def _tool(name="add", **function):
    return {"type": "function", "function": {"name": name, **function}}


NESTED: dict = {}
for _ in range(30):
    NESTED = {"type": "object", "properties": {"a": NESTED}}
ENDLESS: dict = {"type": "object"}
ENDLESS["properties"] = {"a": ENDLESS, "b": [ENDLESS, ENDLESS]}


def test_tools_are_given_on_as_templates_know_them():
    given = _tool(description="Adds.", parameters={"type": "object"}, strict=False)
    use = tool_use([given])
    assert use == ToolUse((_tool(description="Adds.", parameters={"type": "object"}),))
    assert (use.names, use.forced) == ({"add"}, ())
    assert (
        tool_use(None)
        is tool_use([])
        is tool_use([given], "none")
        is tool_use(None, "auto")
        is None
    )


@pytest.mark.parametrize(
    ("tools", "words"),
    [
        ("add", "type str"),
        (5, "type int"),
        ([5], 'no type "function"'),
        ([{"type": "web_search"}], 'no type "function"'),
        ([{"type": "function"}], "and no more"),
        ([{**_tool(), "x": 1}], "and no more"),
        ([_tool("")], "name of tool 1"),
        ([_tool(), _tool("a b")], "name of tool 2"),
        ([_tool("a" * 65)], "name of tool 1"),
        ([_tool(None)], "name of tool 1"),
        ([_tool(x=1)], "field 'x'"),
        ([_tool(description=1)], "description of the tool add"),
        ([_tool(strict="yes")], "strict of the tool add"),
        ([_tool(parameters=[])], "parameters of the tool add"),
        ([_tool(parameters={"type": "array"})], "parameters of the tool add"),
        ([_tool(), _tool()], "two tools are called add"),
        ([_tool(f"t{i}") for i in range(MAX_TOOLS + 1)], "there are 129 tools"),
        ([_tool(description="a" * 65536)], "65,5"),
        ([_tool(description="\ud800")], "not JSON"),
        ([_tool(parameters={"a": {1}})], "not JSON"),
        ([_tool(parameters={"a": float("nan")})], "not JSON"),
        ([_tool(parameters=NESTED)], "nested more than"),
        ([_tool(parameters=ENDLESS)], "nested more than"),
    ],
)
def test_malformed_tools_are_refused(tools, words):
    with pytest.raises(UsageError, match=words):
        tool_use(tools)


@pytest.mark.parametrize(
    ("tools", "choice", "words"),
    [
        ([_tool()], "add", "tool_choice is 'add'"),
        ([_tool()], 5, "tool_choice is 5"),
        ([_tool()], {"type": "function"}, "tool_choice is"),
        ([_tool()], {"function": {"name": "add"}}, "tool_choice is"),
        ([_tool()], {"type": "function", "function": {"name": "sub"}}, "the tool 'sub'"),
        ([], "required", "there are no tools"),
        (None, {"type": "function", "function": {"name": "add"}}, "there are no tools"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(tools, choice, words):
    with pytest.raises(UsageError, match=words):
        tool_use(tools, choice)


def test_a_forced_call_has_a_schema_in_which_references_keep_their_meaning():
    parameters = {"properties": {"x": {"$ref": "#/$defs/X"}}, "$defs": {"X": {"type": "integer"}}}
    tools = [_tool(parameters=parameters), _tool("now")]
    named = tool_use(tools, {"type": "function", "function": {"name": "add"}})
    assert named.forced == ("add",)
    format = named.forced_json(TOOL_FORMATS["llama"])
    schema = schema_of(format)
    assert schema["$defs"]["tool0"] == {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/tool0/$defs/X"}},
        "$defs": {"X": {"type": "integer"}},
    }
    (call,) = schema["anyOf"]
    assert call["properties"] == {
        "name": {"const": "add"},
        "parameters": {"$ref": "#/$defs/tool0"},
    }
    both = tool_use(tools, "required", takes_many=False).forced_json(TOOL_FORMATS["mistral"])
    assert both["schema"]["type"] == "array"
    assert (both["schema"]["minItems"], both["schema"]["maxItems"]) == (1, 1)
    assert len(both["schema"]["items"]["anyOf"]) == 2
