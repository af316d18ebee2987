"""``response_format``: JSON in general, or JSON of a schema."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

from pydantic import Field

from martlet.server.failures import ApiError
from martlet.server.fields import Body, Flag

__all__ = ["ResponseFormat", "checked_schema"]

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 32


class JsonSchemaFormat(Body):
    """A schema with its name. The answer always keeps to it, ``strict`` or not."""

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    description: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    strict: Flag = None


class ResponseFormat(Body):
    """What an answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    def to_job(self) -> dict[str, Any] | None:
        """The format as jobs have it.

        Raises:
            ApiError: 400; there is no schema, or one that is too large.
        """
        if self.type == "text":
            return None
        if self.type == "json_object":
            return {"type": "json_object"}
        if self.json_schema is None:
            param = "response_format.json_schema"
            raise ApiError(400, "missing_required_parameter", f"{param} is missing", param)
        return checked_schema(self.json_schema.schema_, "response_format.json_schema.schema")


def checked_schema(schema: dict[str, Any], param: str) -> dict[str, Any]:
    """The format of a schema that is small enough to be compiled.

    Raises:
        ApiError: 400; it is too large or too deep.
    """
    num_bytes = len(json.dumps(schema, ensure_ascii=False).encode())
    if num_bytes > MAX_SCHEMA_BYTES:
        message = f"{param} has {num_bytes:,} bytes; the limit is {MAX_SCHEMA_BYTES:,}"
        raise ApiError(400, "invalid_json_schema", message, param)
    if _depth(schema) > MAX_SCHEMA_DEPTH:
        message = f"{param} is nested more than {MAX_SCHEMA_DEPTH} deep, which is the limit"
        raise ApiError(400, "invalid_json_schema", message, param)
    return {"type": "json_schema", "schema": schema}


def _depth(value: Any) -> int:
    """How deep lists and objects are nested; what was read from JSON has no loops."""
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    is_nested = isinstance(value, dict | list)
    return int(is_nested) + max(map(_depth, parts), default=0)
