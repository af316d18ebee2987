"""What all requests have in common: strict types, refused fields by name, sampling parameters."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from martlet.server.failures import ApiError

__all__ = [
    "Body",
    "Flag",
    "MaxTokens",
    "SamplingFields",
    "Seed",
    "Stop",
    "StreamOptions",
    "User",
    "validate",
]

_logger = logging.getLogger(__name__)

MAX_STOP_STRINGS = 4
MAX_STOP_CHARACTERS = 128
LARGEST_SEED = (1 << 63) - 1
LARGEST_TOKENS = (1 << 31) - 1
_FIELD_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_BodyT = TypeVar("_BodyT", bound="Body")


class Body(BaseModel):
    """An object of a request: types are strict, a null field is one that was not given.

    ``refused`` names the fields that cannot be honoured, each with the values that ask for
    nothing; ``no_effect`` those that are known and change nothing here. Any other field is passed
    over with a line in the log.
    """

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    no_effect: ClassVar[frozenset[str]] = frozenset()

    @model_validator(mode="before")
    @classmethod
    def _take_given(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        for name, harmless in cls.refused.items():
            given = value.get(name)
            if given is not None and not any(_is_same(given, allowed) for allowed in harmless):
                allowed_text = " or ".join(_json_word(word) for word in harmless)
                hint = f"; only {allowed_text} is" if harmless else "; leave it out"
                raise PydanticCustomError(
                    "unsupported_parameter",
                    "{name} is not supported here{hint}",
                    {"name": name, "hint": hint},
                )
        return {name: field for name, field in value.items() if field is not None}


class CallingMessage(Body):
    """A message that may have calls of tools instead of content."""

    @model_validator(mode="before")
    @classmethod
    def _allow_calls_alone(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("tool_calls") and value.get("content") is None:
            return {**value, "content": ""}
        return value


def _is_same(given: Any, allowed: Any) -> bool:
    return type(given) is type(allowed) and bool(given == allowed)


def _json_word(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stop = Annotated[
    list[_StopString],
    Field(max_length=MAX_STOP_STRINGS),
    BeforeValidator(_as_list),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
                {
                    "type": "array",
                    "maxItems": MAX_STOP_STRINGS,
                    "items": {"type": "string", "minLength": 1, "maxLength": MAX_STOP_CHARACTERS},
                },
            ]
        }
    ),
]
"""A string, or a list of them, that ends the text."""

Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
MaxTokens = Annotated[int, Field(ge=1, le=LARGEST_TOKENS)]
User = Annotated[str, Field(max_length=512)]
Flag = StrictBool | None


class SamplingFields(Body):
    """How tokens are chosen, in OpenAI's words, with top_k, min_p and repetition_penalty."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=LARGEST_TOKENS)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    stop: Stop | None = None
    seed: Seed | None = None
    max_tokens: MaxTokens | None = None

    def sampling(self) -> dict[str, Any]:
        """The sampling parameters that were given."""
        names = SamplingFields.model_fields
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


class StreamOptions(Body):
    """What a stream carries beside the text."""

    refused: ClassVar[Mapping[str, tuple[Any, ...]]] = {"include_obfuscation": (False,)}

    include_usage: Flag = None


def validate(schema: type[_BodyT], value: dict[str, Any]) -> _BodyT:
    """A checked request.

    Raises:
        ApiError: 400; names the field, never what was in it.
    """
    try:
        body = schema.model_validate(value)
    except ValidationError as error:
        raise _first_error(error) from None
    known = set(schema.refused) | schema.no_effect
    for name, model_field in schema.model_fields.items():
        known |= {name, model_field.alias or name}
    for name in sorted(set(value) - known):
        _logger.info("%s: field %.64r is not known and was passed over", schema.__name__, name)
    return body


def _first_error(error: ValidationError) -> ApiError:
    details = error.errors(include_url=False, include_input=True)[0]
    kind, context = details["type"], details.get("ctx", {})
    place = [str(part) for part in details["loc"] if _is_place(part)]
    if kind == "unsupported_parameter":
        place.append(str(context["name"]))
        return ApiError(400, kind, details["msg"], ".".join(place))
    param = ".".join(place) or None
    message = f"{param or 'the body'}: {_message(details)}"
    return ApiError(400, _code(kind), message, param)


def _code(kind: str) -> str:
    if kind == "missing":
        return "missing_required_parameter"
    if kind.endswith(("_type", "_parsing")):
        return "invalid_type"
    return kind if kind.startswith("unsupported_") else "invalid_value"


def _message(details: ErrorDetails) -> str:
    """What pydantic says, with the value only where it is a number: texts are the client's own."""
    text = details["msg"][:1].lower() + details["msg"][1:]
    given = details["input"]
    is_told = given is None or isinstance(given, bool | int | float)
    return f"{text}, got {json.dumps(given)}" if is_told else text


def _is_place(part: int | str) -> bool:
    """Whether a part of pydantic's location stands in the request, not for a branch of a type."""
    if isinstance(part, int):
        return True
    branches = ("str", "int", "float", "bool", "list", "dict")
    return part not in branches and _FIELD_NAME.fullmatch(part) is not None
