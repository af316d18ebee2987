"""Bodies are bounded, strict JSON; what is not is refused before a schema looks at it."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from martlet.server.bodies import MAX_DEPTH, parse_object
from martlet.server.failures import ApiError

from .asgi import ask, idle_app

PATH = "/v1/chat/completions"
JSON = {"content-type": "application/json"}


def refusal(body):
    with pytest.raises(ApiError) as caught:
        parse_object(body)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")
    return str(caught.value)


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e309", "-1e400", "9223372036854775808", "9" * 5000]
)
@pytest.mark.parametrize("where", ['{"a": %s}', '{"a": [{"b": [1, %s]}]}'])
def test_numbers_that_json_or_a_machine_does_not_know_are_refused(number, where):
    assert "number" in refusal((where % number).encode())


def test_the_largest_numbers_are_read():
    assert parse_object(b'{"a": 9223372036854775807, "b": -1.5e300}') == {
        "a": (1 << 63) - 1,
        "b": -1.5e300,
    }


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "list"),
        (b'"text"', "str"),
        (b"null", "NoneType"),
        (b'{"a": "\xff"}', "UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        ("{}".encode("utf-16"), "UTF-8"),
    ],
)
def test_what_is_no_json_object_is_refused(body, word):
    assert word in refusal(body)


def test_a_pair_of_escapes_is_one_character():
    assert parse_object(b'{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


def test_depth_is_bounded_and_brackets_in_texts_do_not_count():
    deep = b'{"a":' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}"
    parse_object(deep)
    assert "nested" in refusal(b'{"a":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}")
    assert "nested" in refusal(b'{"a":' * 100_000)
    text = '[{"' * 500 + '\\"'
    assert parse_object(json.dumps({"a": text}).encode()) == {"a": text}


@pytest.mark.parametrize("unit", [b'"', b'\\"', b"[", b'["', b'\\"["', b"[],", b'{"a":'])
def test_a_hostile_body_of_two_megabytes_takes_no_time_that_grows_faster_than_it(unit):
    body = b'{"a": [' + unit * ((2 << 20) // len(unit))
    start = time.perf_counter()
    refusal(body)
    assert time.perf_counter() - start < 5


@given(
    st.dictionaries(
        st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.text(max_size=20),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
            max_leaves=12,
        ),
    )
)
def test_ordinary_objects_come_back_as_they_were(value):
    try:
        body = json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        assert "surrogate" in refusal(json.dumps(value).encode())
        return
    assert parse_object(body) == value


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "identity, gzip"])
def test_compressed_bodies_are_refused_unread(encoding):
    reply = ask(idle_app(), "POST", PATH, headers={**JSON, "content-encoding": encoding}, body=b"x")
    assert (reply.status, reply.code) == (415, "content_encoding_not_supported")


@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""]
)
def test_other_types_than_json_are_refused(media_type):
    # A form of another site can send these without asking first.
    reply = ask(idle_app(), "POST", PATH, headers={"content-type": media_type}, body=b"{}")
    assert (reply.status, reply.code) == (415, "unsupported_media_type")


def test_a_body_is_counted_while_it_is_read_and_believed_when_it_says_its_length():
    app = idle_app(max_body_bytes=100_000)
    reply = ask(app, "POST", PATH, headers=JSON, body=b"x" * 100_001)
    assert (reply.status, reply.code) == (413, "request_too_large")
    assert reply.headers["connection"] == "close"
    reply = ask(app, "POST", PATH, headers={**JSON, "content-length": "9" * 30}, body=b"{}")
    assert reply.status == 413
    reply = ask(app, "POST", PATH, headers=JSON, body=b" " * 99_998 + b"{}")
    assert (reply.status, reply.code) == (400, "missing_required_parameter")
