"""What a JSON schema may look like before anything is made of it: size, depth, keywords."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from martlet.errors import UsageError

__all__ = ["ANY_OBJECT", "MOST_DEPTH", "MOST_SCHEMA_BYTES", "literals", "schema_of"]

ANY_OBJECT = {"type": "object"}
"""The schema of json_object."""

MOST_SCHEMA_BYTES = 64 << 10
MOST_DEPTH = 32
_MOST_VALUES = MOST_SCHEMA_BYTES  # each value is at least a byte of JSON

# Keywords by what stands behind them: one schema, a list of them, schemas by name, or data.
_SCHEMA = frozenset({"items", "additionalProperties"})
_SCHEMAS = frozenset({"anyOf", "allOf", "oneOf", "prefixItems"})
_NAMED_SCHEMAS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_TYPES = frozenset({"type", "enum", "const", "$ref", "format", "pattern"})
_COUNTS = frozenset({"Properties", "Items", "Length"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_DATA = _TYPES | _BOUNDS | {"required"} | {end + what for end in ("min", "max") for what in _COUNTS}
_ABOUT = frozenset({"title", "description", "default", "examples", "deprecated"})
_NOTES = _ABOUT | {"readOnly", "writeOnly", "$schema", "$id", "$comment"}
_KEYWORDS = _SCHEMA | _SCHEMAS | _NAMED_SCHEMAS | _DATA | _NOTES


def schema_of(format: Mapping[str, Any]) -> dict[str, Any]:
    """The schema that a format stands for, checked, and a copy that nobody else changes.

    ``format`` is ``{"type": "json_object"}`` or ``{"type": "json_schema", "schema": {...}}``.

    Raises:
        UsageError: the format or its schema is malformed, too large or too deep, or a keyword is
            not supported.
    """
    kind = format.get("type") if isinstance(format, Mapping) else None
    if kind == "json_object":
        _require_fields(format, {"type"})
        return dict(ANY_OBJECT)
    if kind != "json_schema":
        raise UsageError(
            f"the type of format is {kind!r:.40}; it must be json_object, or json_schema with a "
            "schema"
        )
    _require_fields(format, {"type", "schema"})
    schema = format.get("schema")
    if not isinstance(schema, dict):
        raise UsageError(
            f"the schema is of type {type(schema).__name__}; it must be an object, as in "
            '{"type": "object", "properties": {...}}'
        )
    _require_shallow(schema)
    copy: dict[str, Any] = json.loads(_as_json(schema))
    _check_keywords(copy)
    return copy


def literals(schema: dict[str, Any]) -> Iterator[str]:
    """Strings that a text of this schema may have to spell: names, and strings of enum or const."""
    for _, part in _parts(schema):
        yield from part.get("properties", {})
        yield from filter(_is_text, part.get("required", []))
        yield from _strings([part.get("enum", []), part.get("const")])


def _require_fields(format: Mapping[str, Any], allowed: set[str]) -> None:
    if unknown := sorted(map(str, set(format) - allowed)):
        raise UsageError(
            f"format has the field {unknown[0]:.40}; a {format['type']} has only "
            f"{' and '.join(sorted(allowed))}"
        )


def _require_shallow(schema: dict[str, Any]) -> None:
    """Bound depth and number of values, without recursion: the schema may be of any depth."""
    level: list[Any] = [schema]
    num_values = depth = 0
    while level:
        num_values += len(level)
        depth += 1
        if depth > MOST_DEPTH:
            raise UsageError(
                f"the schema is nested more than {MOST_DEPTH} deep; name inner schemas in $defs "
                "and use $ref"
            )
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
            elif isinstance(value, list | tuple):
                inner += value
            if num_values + len(inner) > _MOST_VALUES:
                raise _too_large(f"more than {_MOST_VALUES:,} values")
        level = [value for value in inner if isinstance(value, dict | list | tuple)]
        num_values += len(inner) - len(level)


def _as_json(schema: dict[str, Any]) -> str:
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
        num_bytes = len(text.encode())
    except (TypeError, ValueError) as error:  # a set, an infinity, half a surrogate pair
        raise UsageError(f"the schema is not JSON: {error!s:.80}") from None
    if num_bytes > MOST_SCHEMA_BYTES:
        raise _too_large(f"{num_bytes:,} bytes of JSON")
    return text


def _too_large(size: str) -> UsageError:
    return UsageError(
        f"the schema has {size}; at most {MOST_SCHEMA_BYTES:,} bytes are allowed: use a smaller one"
    )


def _check_keywords(schema: dict[str, Any]) -> None:
    for path, part in _parts(schema):
        if unknown := [name for name in part if name not in _KEYWORDS]:
            raise UsageError(
                f"the schema has the keyword {unknown[0]!r:.60} at {path}, which is not supported; "
                f"supported are {', '.join(sorted(_KEYWORDS - _NOTES))}"
            )
        reference = part.get("$ref")
        if reference is not None and not (_is_text(reference) and reference.startswith("#")):
            raise UsageError(
                f"the schema has the $ref {reference!r:.60} at {path}; only parts of the same "
                "schema may be referred to, as in #/$defs/name"
            )


def _parts(schema: Any, path: str = "#") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema inside a schema, itself included, with its place; data are none.

    Raises:
        UsageError: something stands where a schema must be.
    """
    if isinstance(schema, bool):
        return
    if not isinstance(schema, dict):
        raise UsageError(f"the schema has {schema!r:.40} at {path}; a schema must be there")
    yield path, schema
    for name, value in schema.items():
        yield from _parts_behind(name, value, f"{path}/{name:.40}")


def _parts_behind(name: str, value: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if name in _NAMED_SCHEMAS:
        if not isinstance(value, dict):
            raise UsageError(f"the schema has {value!r:.40} at {path}; it must be an object")
        for inner, part in value.items():
            yield from _parts(part, f"{path}/{inner:.40}")
    elif name in _SCHEMAS or (name in _SCHEMA and isinstance(value, list)):
        if not isinstance(value, list):
            raise UsageError(f"the schema has {value!r:.40} at {path}; it must be a list")
        for index, part in enumerate(value):
            yield from _parts(part, f"{path}/{index}")
    elif name in _SCHEMA:
        yield from _parts(value, path)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from value
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
