"""The description of the interface, made from the table of routes and the schemas of bodies."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from pydantic.json_schema import models_json_schema

from martlet import __version__
from martlet.server.fields import Body
from martlet.server.service import Endpoint

__all__ = ["describe_api"]

_PATH_PARAMETER = re.compile(r"{(\w+):path}")
_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "string"},
            },
        }
    },
}
_OLLAMA_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}


def describe_api(endpoints: Iterable[Endpoint]) -> dict[str, Any]:
    """An OpenAPI 3.1 document of all endpoints that are part of the interface."""
    described = [endpoint for endpoint in endpoints if endpoint.in_openapi]
    bodies = {endpoint.body for endpoint in described if endpoint.body is not None}
    by_name: list[type[Body]] = sorted(bodies, key=lambda body: body.__name__)
    _, definitions = models_json_schema(
        [(body, "validation") for body in by_name], ref_template=_REFERENCE
    )
    schemas = definitions.get("$defs", {})
    for body in by_name:
        _add_refused(schemas[body.__name__], body)
    paths: dict[str, Any] = {}
    for endpoint in described:
        path = _PATH_PARAMETER.sub(r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Martlet", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {
            "schemas": {**schemas, "Error": _ERROR, "OllamaError": _OLLAMA_ERROR},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _add_refused(schema: dict[str, Any], body: type[Body]) -> None:
    """Name what is refused, with the values that ask for nothing, and what has no effect."""
    for name, harmless in body.refused.items():
        schema["properties"][name] = {"enum": [None, *harmless], "description": "Not supported"}
    for name in sorted(body.no_effect):
        schema["properties"].setdefault(name, {"description": "Taken, and without effect here"})


def _operation(endpoint: Endpoint) -> dict[str, Any]:
    is_ollama = endpoint.summary.startswith("Ollama:")
    error = {"$ref": _REFERENCE.format(model="OllamaError" if is_ollama else "Error")}
    operation: dict[str, Any] = {
        "operationId": _operation_id(endpoint),
        "summary": endpoint.summary,
        "responses": {
            "200": {"description": "Done", "content": _content(endpoint)},
            "default": {
                "description": "An error",
                "content": {"application/json": {"schema": error}},
            },
        },
        "security": [] if endpoint.is_public else [{"bearer": []}, {"key": []}, {}],
    }
    names = _PATH_PARAMETER.findall(endpoint.path)
    if names:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if endpoint.body is not None:
        schema = {"$ref": _REFERENCE.format(model=endpoint.body.__name__)}
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    return operation


def _content(endpoint: Endpoint) -> dict[str, Any]:
    if endpoint.answer is None:
        return {"text/plain": {"schema": {"type": "string"}}}
    content: dict[str, Any] = {"application/json": {"schema": endpoint.answer}}
    if endpoint.stream is not None:
        content[endpoint.stream] = {"schema": {"type": "string"}}
    return content


def _operation_id(endpoint: Endpoint) -> str:
    words = re.findall(r"\w+", endpoint.path.replace(":path", ""))
    return "_".join([endpoint.method.lower(), *words])
