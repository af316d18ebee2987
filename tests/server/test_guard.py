"""Host, Origin and key, for every method and every route of the table."""

import pytest

from martlet.server.app import all_endpoints
from martlet.server.guard import client_of

from .asgi import ask, idle_app

KEY = "sk-test-0123456789"
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
ENDPOINTS = all_endpoints()
LOCKED = idle_app(api_key=KEY)  # at the same moment, so that both know the same files


def concrete(path):
    return path.replace("{model:path}", "one")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "127.9.9.9:1"],
)
def test_loopback_names_and_addresses_are_answered(host):
    assert ask(idle_app(), host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.com",
        "evil.com:8000",
        "localhost.evil.com",
        "127.0.0.1.evil.com",
        "localhost@evil.com",
        "evil.com@localhost",
        "192.168.1.7:8000",
        "0.0.0.0",
        "127.0.0.1:port",
        "[::1",
        "localhost/x",
        "",
        None,
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE", "PUT"])
def test_a_name_that_is_pointed_at_this_machine_is_refused(host, method):
    reply = ask(idle_app(), method, host=host)
    assert (reply.status, reply.code) == (403, "host_not_allowed")


def test_two_host_headers_are_refused():
    reply = ask(idle_app(), headers=[("host", "localhost")], host="localhost")
    assert (reply.status, reply.code) == (403, "host_not_allowed")


def test_further_names_are_answered_where_they_are_allowed():
    app = idle_app(allowed_hosts=("models.lan", "big.example:9000"))
    assert ask(app, host="models.lan:8000").status == 200
    assert ask(app, host="big.example").status == 200
    assert ask(app, host="other.lan").status == 403


def test_a_server_on_all_addresses_answers_to_numbers_but_not_to_foreign_names():
    app = idle_app(host="0.0.0.0", api_key=KEY)
    headers = {"authorization": f"Bearer {KEY}"}
    assert ask(app, host="192.168.1.7:8000", headers=headers).status == 200
    assert ask(app, host="[fe80::1]:8000", headers=headers).status == 200
    assert ask(app, host="evil.com", headers=headers).status == 403


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost.evil.com",
        "https://evil.com",
        "http://127.0.0.1:9999",
        "null",
        "file://",
        "http://127.0.0.1:8000@evil.com",
    ],
)
def test_pages_of_other_origins_are_refused_for_all_methods(method, origin):
    reply = ask(idle_app(), method, headers={"origin": origin})
    assert (reply.status, reply.code) == (403, "origin_not_allowed")
    assert "access-control-allow-origin" not in reply.headers


def test_the_own_page_may_ask_and_gets_no_cors_headers():
    reply = ask(idle_app(), headers={"origin": "http://127.0.0.1:8000"})
    assert reply.status == 200
    assert not [name for name in reply.headers if name.startswith("access-control")]


def test_an_allowed_origin_is_named_in_the_answer_without_credentials():
    app = idle_app(allowed_origins=("https://chat.example",))
    reply = ask(app, headers={"origin": "https://chat.example"})
    assert reply.headers["access-control-allow-origin"] == "https://chat.example"
    assert "Origin" in reply.headers["vary"]
    assert "access-control-allow-credentials" not in reply.headers
    assert ask(app, headers={"origin": "https://chat.example.evil.com"}).status == 403


def test_a_star_is_never_together_with_credentials():
    app = idle_app(allowed_origins=("*",), api_key=KEY)
    headers = {"origin": "https://any.example", "access-control-request-method": "POST"}
    reply = ask(app, "OPTIONS", "/v1/chat/completions", headers=headers)
    assert reply.status == 204
    assert reply.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in reply.headers


def test_a_preflight_of_an_allowed_page_needs_no_key_but_its_request_does():
    app = idle_app(allowed_origins=("https://chat.example",), api_key=KEY)
    origin = {"origin": "https://chat.example"}
    preflight = {**origin, "access-control-request-method": "POST"}
    reply = ask(app, "OPTIONS", "/v1/chat/completions", headers=preflight)
    assert reply.status == 204
    assert "authorization" in reply.headers["access-control-allow-headers"]
    reply = ask(app, "POST", "/v1/chat/completions", headers=origin, body={})
    assert reply.status == 401
    # The page can read why.
    assert reply.headers["access-control-allow-origin"] == "https://chat.example"


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda e: f"{e.method} {e.path}")
def test_every_route_of_the_table_needs_the_key_but_probes_and_pages(endpoint):
    path = concrete(endpoint.path)
    reply = ask(LOCKED, endpoint.method, path, headers={"accept": "text/html"})
    is_page = not endpoint.in_openapi and endpoint.path != "/openapi.json"
    if is_page or endpoint.path in ("/livez", "/health"):
        assert endpoint.method == "GET"
        assert reply.status in (200, 503)
        assert b"one" not in reply.body or is_page, "says nothing about the models"
        return
    assert reply.status == 401
    assert "error" in reply.json()
    assert reply.headers["www-authenticate"] == "Bearer"
    headers = {"authorization": f"Bearer {KEY}"}
    assert ask(LOCKED, endpoint.method, path, headers=headers).status != 401


@pytest.mark.parametrize("path", ["/nothing", "/v1/nothing", "/assets/../v1/models", "//v1/models"])
def test_a_path_that_is_not_there_needs_the_key_too(path):
    assert ask(idle_app(api_key=KEY), path=path).status == 401


def test_public_paths_are_public_for_reading_alone():
    app = idle_app(api_key=KEY)
    for method in ("POST", "PUT", "DELETE"):
        assert ask(app, method, "/livez").status == 401


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {KEY}"},
        {"authorization": f"bearer  {KEY}"},
        {"x-api-key": KEY},
    ],
)
def test_the_key_opens_in_either_header(headers):
    assert ask(idle_app(api_key=KEY), headers=headers).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": KEY},
        {"authorization": f"Basic {KEY}"},
        {"authorization": "Bearer "},
        {"authorization": f"Bearer {KEY[:-1]}"},
        {"authorization": f"Bearer {KEY}x"},
        {"x-api-key": KEY.upper()},
        {"x-api-key": "ÿ"},
    ],
)
def test_another_key_does_not_open(headers):
    reply = ask(idle_app(api_key=KEY), headers=headers)
    assert reply.status == 401
    assert KEY not in reply.body.decode()


def test_long_headers_are_refused():
    reply = ask(idle_app(), headers={"x-padding": "x" * 40_000})
    assert (reply.status, reply.code) == (431, "headers_too_large")


def test_the_fair_queue_knows_keys_by_a_digest_and_tells_users_apart():

    with_key = {"authorization": f"Bearer {KEY}"}
    owner = client_of(with_key, "10.0.0.1", None)
    assert KEY not in owner
    assert owner == client_of({"x-api-key": KEY}, "10.0.0.2", None)
    assert client_of({}, "10.0.0.1", None) == "10.0.0.1"
    assert len({client_of(with_key, "10.0.0.1", user) for user in (None, "ann", "bob")}) == 3
