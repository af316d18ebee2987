"""Every field is honoured or refused by name; types are strict; null is nothing given."""

import logging
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import completion_create_params as chat_params

from martlet.server.failures import ApiError
from martlet.server.fields import validate
from martlet.server.fill_routes import FillRequest
from martlet.server.infill import InfillRequest
from martlet.server.ollama_fields import (
    OllamaChatRequest,
    OllamaEmbedRequest,
    OllamaGenerateRequest,
    OllamaShowRequest,
)
from martlet.server.openai_chat import ChatRequest
from martlet.server.openai_completions import CompletionRequest
from martlet.server.openai_embeddings import EmbeddingRequest
from martlet.server.token_routes import DetokenizeRequest, TokenizeRequest

MESSAGES = [{"role": "user", "content": "你好"}]
# A good request of each schema, which must be as small as it can be.
SMALLEST = {
    ChatRequest: {"model": "m", "messages": MESSAGES},
    CompletionRequest: {"model": "m", "prompt": "清晨"},
    EmbeddingRequest: {"model": "m", "input": "清晨"},
    FillRequest: {"model": "m", "text": "今天__真好"},
    InfillRequest: {"input_prefix": "今天", "input_suffix": "真好"},
    OllamaChatRequest: {"model": "m"},
    OllamaEmbedRequest: {"model": "m", "input": "清晨"},
    OllamaGenerateRequest: {"model": "m"},
    OllamaShowRequest: {"model": "m"},
    TokenizeRequest: {"content": "清晨"},
    DetokenizeRequest: {"tokens": [1]},
}
SCHEMAS = list(SMALLEST)


def refusal(schema, **changes):
    with pytest.raises(ApiError) as caught:
        validate(schema, {**SMALLEST[schema], **changes})
    assert caught.value.status == 400
    return caught.value


@pytest.mark.parametrize(
    ("schema", "params"),
    [
        (ChatRequest, chat_params.CompletionCreateParamsBase),
        (CompletionRequest, completion_create_params.CompletionCreateParamsBase),
        (EmbeddingRequest, embedding_create_params.EmbeddingCreateParams),
    ],
)
def test_every_field_of_openais_own_client_is_known(schema, params):
    names = set(typing.get_type_hints(params))
    known = set(schema.model_fields) | set(schema.refused) | schema.no_effect
    assert names <= known, f"neither honoured nor refused: {names - known}"


@pytest.mark.parametrize("schema", SCHEMAS)
def test_a_refused_field_is_named_and_its_harmless_values_are_taken(schema):
    for name, harmless in schema.refused.items():
        error = refusal(schema, **{name: {"any": "thing"}})
        assert (error.code, error.param) == ("unsupported_parameter", name)
        for value in (None, *harmless):
            validate(schema, {**SMALLEST[schema], name: value})


@pytest.mark.parametrize("schema", SCHEMAS)
def test_null_is_the_same_as_not_given(schema):
    nothing = {name: None for name, field in schema.model_fields.items() if not field.is_required()}
    body = validate(schema, {**nothing, **SMALLEST[schema]})
    assert body == validate(schema, SMALLEST[schema])


@pytest.mark.parametrize(
    "field", ["temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "top_k"]
)
@pytest.mark.parametrize("value", [True, "1", [1], {"a": 1}, -3, 1e300, 2**62])
@pytest.mark.parametrize("schema", [ChatRequest, CompletionRequest, FillRequest, InfillRequest])
def test_sampling_numbers_are_strict_and_bounded(schema, field, value):
    error = refusal(schema, **{field: value})
    assert error.param == field
    assert error.code in ("invalid_type", "invalid_value")


@pytest.mark.parametrize("field", ["max_tokens", "n", "seed", "top_logprobs"])
@pytest.mark.parametrize("value", [True, 1.5, "1", -1, 2**63])
def test_whole_numbers_are_strict_and_bounded(field, value):
    assert refusal(ChatRequest, **{field: value}).param == field


def test_a_message_names_the_field_the_limit_and_a_number_but_never_a_text():
    error = refusal(ChatRequest, temperature=3)
    assert str(error) == "temperature: input should be less than or equal to 2, got 3"
    error = refusal(ChatRequest, temperature="secret")
    assert "secret" not in str(error)
    error = refusal(ChatRequest, messages=[*MESSAGES, {"role": "robot", "content": "secret"}])
    assert error.param == "messages.1.role"
    assert "secret" not in str(error)
    assert "robot" not in str(error)


@pytest.mark.parametrize(
    "stop", [["a"] * 5, [""], "", "x" * 129, ["ok", "x" * 129], 5, [5], [["a"]], {"a": 1}]
)
def test_stop_strings_are_bounded_in_number_and_length(stop):
    assert refusal(ChatRequest, stop=stop).param.startswith("stop")


@pytest.mark.parametrize("stop", ["。", ["。"], ["a", "b", "c", "x" * 128], []])
def test_stop_is_a_string_or_a_list_of_strings(stop):
    given = validate(ChatRequest, {**SMALLEST[ChatRequest], "stop": stop}).stop
    assert given == ([stop] if isinstance(stop, str) else stop)


def test_a_missing_field_is_named():
    with pytest.raises(ApiError) as caught:
        validate(ChatRequest, {"model": "m"})
    assert (caught.value.code, caught.value.param) == ("missing_required_parameter", "messages")


def test_an_unknown_field_is_passed_over_with_a_line_that_has_its_name_alone(caplog):
    with caplog.at_level(logging.INFO):
        validate(ChatRequest, {**SMALLEST[ChatRequest], "mirror": "secret", "metadata": {"a": "b"}})
    assert len(caplog.records) == 1
    assert "mirror" in caplog.text
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest/meta-data"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": "http:\\\\evil"},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "file", "file": {"file_id": "x"}},
        {"type": "text"},
        {"type": "text", "text": 5},
        {"text": "no type"},
        "text",
        None,
    ],
)
def test_parts_that_are_no_text_are_refused(part):
    content = [{"type": "text", "text": "看"}, part]
    error = refusal(ChatRequest, messages=[{"role": "user", "content": content}])
    assert error.code == "unsupported_content_part"
    assert error.param == "messages.0.content"


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "一"}, {"type": "text", "text": "二"}]
    body = validate(ChatRequest, {"model": "m", "messages": [{"role": "user", "content": parts}]})
    assert body.messages[0].content == "一\n二"


_ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(["user", "text", "json_schema", "清晨", [], {}, -1, 2**31, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=6,
)


@given(schema=st.sampled_from(SCHEMAS), data=st.data())
def test_whatever_stands_in_the_fields_it_is_taken_or_refused_with_400(schema, data):
    names = sorted(set(schema.model_fields) | set(schema.refused))
    fuzz = data.draw(st.dictionaries(st.sampled_from(names), _ANYTHING, max_size=4))
    try:
        validate(schema, {**SMALLEST[schema], **fuzz})
    except ApiError as error:
        assert error.status == 400
        assert error.code
