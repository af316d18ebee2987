import math

import pytest

from martlet.engine.schema_check import literals, schema_of
from martlet.errors import UsageError


def _schema(schema):
    return schema_of({"type": "json_schema", "schema": schema})


def _nested(depth):
    schema = {"type": "string"}
    for _ in range(depth):
        schema = {"items": schema}
    return schema


def test_json_object_is_the_schema_of_any_object():
    assert schema_of({"type": "json_object"}) == {"type": "object"}


def test_the_schema_is_a_copy_that_its_giver_cannot_change():
    given = {"type": "object", "properties": {"a": {"type": "integer"}}}
    schema = _schema(given)
    given["properties"]["a"]["type"] = "string"
    assert schema["properties"]["a"] == {"type": "integer"}
    assert list(_schema({"properties": {"z": True, "a": True}})["properties"]) == ["z", "a"]


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ({"type": "text"}, "is 'text'; it must be json_object, or json_schema"),
        ({}, "is None"),
        ("json_object", "is None"),
        ({"type": "json_object", "schema": {}}, "has the field schema"),
        ({"type": "json_schema"}, "schema is of type NoneType"),
        ({"type": "json_schema", "schema": True}, "schema is of type bool"),
        ({"type": "json_schema", "schema": {}, "name": "x"}, "has the field name"),
    ],
)
def test_a_format_of_another_form_is_refused(format, message):
    with pytest.raises(UsageError, match=message):
        schema_of(format)


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"not": {}}, r"keyword 'not' at #, which"),
        ({"properties": {"a": {"if": {}}}}, r"keyword 'if' at #/properties/a, which"),
        ({"anyOf": [{}, {"uniqueItems": True}]}, r"'uniqueItems' at #/anyOf/1"),
        ({"items": {"x-guidance": {"lenient": True}}}, r"'x-guidance' at #/items"),
        ({"$defs": {"a": {"$dynamicRef": "#a"}}}, r"'\$dynamicRef' at #/\$defs/a"),
        ({"$ref": "http://example.com/a.json"}, r"\$ref 'http://example.com/a.json' at #; only"),
        ({"$ref": 5}, r"\$ref 5 at #"),
        ({"items": 5}, r"has 5 at #/items; a schema must be there"),
        ({"anyOf": {"a": {}}}, r"at #/anyOf; it must be a list"),
        ({"properties": []}, r"has \[\] at #/properties; it must be an object"),
    ],
)
def test_what_is_not_supported_is_refused_by_name_and_place(schema, message):
    with pytest.raises(UsageError, match=message):
        _schema(schema)


def test_names_of_properties_and_data_are_no_keywords():
    schema = {
        "properties": {"not": {"enum": [{"if": 1}]}, "items": True},
        "const": {"uniqueItems": {}},
        "default": {"not": 1},
        "required": ["not"],
    }
    assert _schema(schema) == schema


@pytest.mark.parametrize("depth", [32, 10_000])
def test_a_schema_that_is_too_deep_is_refused(depth):
    with pytest.raises(UsageError, match="more than 32 deep"):
        _schema(_nested(depth))


def test_a_schema_of_32_levels_is_taken():
    assert _schema(_nested(31)) == _nested(31)


@pytest.mark.parametrize(
    "schema",
    [
        {"enum": [f"{number:08}" for number in range(100_000)]},
        {"enum": [0] * 10_000_000},
        {"description": "x" * (1 << 20)},
        {"enum": ["鹅" * 22_000]},
    ],
)
def test_a_schema_that_is_too_large_is_refused(schema):
    with pytest.raises(UsageError, match="at most 65,536 bytes are allowed"):
        _schema(schema)


@pytest.mark.parametrize("value", [math.nan, math.inf, {1, 2}, b"a", "\ud800", object()])
def test_what_is_no_json_is_refused(value):
    with pytest.raises(UsageError, match="is not JSON"):
        _schema({"const": value})


def test_literals_are_all_strings_that_a_text_may_have_to_spell():
    schema = {
        "properties": {"a": {"enum": ["b", {"c": ["d"]}, 5]}, "e": {"pattern": "x"}},
        "required": ["f"],
        "anyOf": [{"const": "g"}],
        "description": "y",
    }
    assert set(literals(schema)) == set("abcdefg")
