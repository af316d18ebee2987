"""Errors reach clients in one shape, with string codes and without anything of this machine."""

import logging

import pytest

from martlet import errors
from martlet.server.app import all_endpoints
from martlet.server.envelope import Envelope
from martlet.server.failures import ApiError, describe

from .asgi import ask, idle_app

ERROR_CLASSES = [getattr(errors, name) for name in errors.__all__]


def assert_is_openai_error(reply):
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert isinstance(error["code"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"]


@pytest.mark.parametrize("error_class", ERROR_CLASSES)
def test_every_class_of_error_has_its_status_and_a_string_code(error_class):
    failure = describe(error_class("what, got, limit, next"))
    assert failure.status == error_class.http_status
    assert failure.code.replace("_", "").isalpha()
    assert failure.to_ollama() == {"error": "what, got, limit, next"}


def test_a_queue_that_is_full_says_when_to_come_back_within_what_clients_accept():
    for seconds, told in ((0.2, "1"), (7.4, "7"), (5000, "120")):
        headers = describe(errors.OverloadedError("full", seconds)).headers
        assert headers == {"retry-after": told, "x-should-retry": "true"}


def test_what_will_not_get_better_is_not_retried():
    assert describe(errors.UnavailableError("down")).headers == {"x-should-retry": "false"}
    assert describe(errors.CapacityError("full")).headers == {"x-should-retry": "true"}
    assert describe(errors.MartletError("not finite")).headers == {"x-should-retry": "false"}
    assert describe(ValueError("x")).headers == {"x-should-retry": "false"}
    assert describe(errors.UsageError("wrong")).headers == {}


def test_no_folder_of_this_machine_is_told():
    error = errors.ModelFileError("/home/ann/models/cpm2/weights.bin: bad; see ~/x/y.log")
    assert describe(error).message == "weights.bin: bad; see y.log"
    kept = "use POST /v1/chat/completions, see http://localhost:8000/v1/models"
    assert describe(errors.UsageError(kept)).message == kept


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/chat", "/v1/models/", "/static/x.js"])
def test_a_path_that_is_not_there_is_404(path):
    reply = ask(idle_app(), path=path)
    assert reply.status == 404
    assert_is_openai_error(reply)


@pytest.mark.parametrize("endpoint", all_endpoints(), ids=lambda e: f"{e.method} {e.path}")
def test_a_method_that_a_path_has_not_is_405_with_those_that_it_has(endpoint):
    path = endpoint.path.replace("{model:path}", "one")
    reply = ask(idle_app(), "DELETE", path)
    assert reply.status == 405
    assert endpoint.method in reply.headers["allow"].split(", ")
    assert "error" in reply.json()


@pytest.mark.parametrize("model", ["../x", "..", "a/b/c/d", "\0", "x" * 10_000, "%2e%2e", "三"])
def test_a_model_that_is_not_there_is_404_whatever_its_name(model):
    reply = ask(idle_app(), path=f"/v1/models/{model}")
    assert (reply.status, reply.code) == (404, "model_not_found")
    assert_is_openai_error(reply)
    assert len(reply.body) < 1000
    body = {"model": model, "messages": [{"role": "user", "content": "你好"}]}
    reply = ask(idle_app(), "POST", "/v1/chat/completions", body=body)
    assert (reply.status, reply.code) == (404, "model_not_found")


def test_a_model_that_loads_is_503_with_a_time_to_come_back():
    body = {"model": "one", "messages": [{"role": "user", "content": "你好"}]}
    reply = ask(idle_app(), "POST", "/v1/chat/completions", body=body)
    assert (reply.status, reply.code) == (503, "model_unavailable")
    assert 1 <= int(reply.headers["retry-after"]) <= 120


def test_clients_of_ollama_get_their_own_shape():
    reply = ask(idle_app(), "POST", "/api/generate", body={"model": "none", "prompt": "x"})
    assert reply.status == 404
    assert "none" in reply.json()["error"]


def test_an_unforeseen_error_is_answered_and_logged_without_what_it_says(caplog):
    async def broken(scope, receive, send):
        raise ValueError("the secret prompt")

    with caplog.at_level(logging.INFO):
        reply = ask(Envelope(broken), headers={"x-request-id": "abc-1"})
    assert (reply.status, reply.code) == (500, "internal_error")
    assert_is_openai_error(reply)
    assert "secret" not in reply.body.decode() + caplog.text
    assert "Traceback" not in reply.body.decode()
    assert "ValueError" in caplog.text
    assert "abc-1" in caplog.text
    assert "broken" in caplog.text, "the place is logged"


def test_a_refused_request_is_logged_without_the_key_or_the_prompt(caplog):
    app = idle_app(api_key="sk-right")
    with caplog.at_level(logging.DEBUG):
        body = {"model": "one", "prompt": "secret words", "secret": 1}
        ask(app, "POST", "/v1/completions", headers={"x-api-key": "sk-wrong"}, body=body)
        ask(app, "POST", "/v1/completions", headers={"x-api-key": "sk-right"}, body=body)
    assert "sk-" not in caplog.text
    assert "secret words" not in caplog.text
    assert "invalid_api_key" in caplog.text


def test_request_ids_are_kept_where_they_are_plain_words():
    assert ask(idle_app(), headers={"x-request-id": "a.b-c_1"}).headers["x-request-id"] == "a.b-c_1"
    for bad in ("x" * 65, "a b", "a\x7f", "<script>"):
        given = ask(idle_app(), headers={"x-request-id": bad}).headers["x-request-id"]
        assert given.startswith("req-")


def test_every_answer_forbids_what_a_page_does_not_need():
    for path in ("/", "/v1/models", "/nothing"):
        headers = ask(idle_app(), path=path, headers={"accept": "text/html"}).headers
        policy = headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_the_status_of_an_api_error_is_its_own():
    failure = describe(ApiError(418, "teapot", "no coffee", "drink", {"x-a": "b"}))
    assert failure.to_openai()["error"]["param"] == "drink"
    assert (failure.status, failure.headers) == (418, {"x-a": "b"})
