"""What is too long, too many or too odd is refused at once, and the server lives on."""

import concurrent.futures
import json
import sys

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .asgi import ask, idle_app
from .client import running_server

CHAT = {"model": "eva-mini", "messages": [{"role": "user", "content": "你好"}], "max_tokens": 2}
WRITE = {"model": "cpm1-mini", "prompt": "清晨", "max_tokens": 2}
FILL = {"model": "cpm2-mini", "text": "今天__。", "max_tokens": 2}
REQUESTS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": WRITE,
    "/v1/fill": FILL,
    "/v1/embeddings": {"model": "cpm2-mini", "input": "清晨"},
    "/infill": {"input_prefix": "今", "input_suffix": "好", "n_predict": 2},
    "/api/generate": {"model": "cpm1-mini", "prompt": "清晨", "options": {"num_predict": 2}},
}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {**WRITE, "prompt": "清晨" * 1000}),
        ("/v1/completions", {**WRITE, "prompt": [5] * 600}),
        ("/v1/completions", {**WRITE, "model": "cpm2-mini", "prompt": "清晨" * 1000}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "你" * 999}]}),
        ("/v1/embeddings", {"model": "cpm2-mini", "input": "清晨" * 1000}),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_beyond_the_context_is_refused_with_both_numbers(server, path, body, stream):
    body = body if path == "/v1/embeddings" else {**body, "stream": stream}
    reply = server.post(path, body)
    assert (reply.status, reply.code) == (400, "context_length_exceeded")
    message = reply.json()["error"]["message"]
    numbers = [word.strip(",;.") for word in message.split() if word[0].isdigit()]
    assert len(numbers) >= 2, message


def test_a_queue_that_is_full_is_429_at_once_with_a_time_to_come_back(server):
    # Two slots and three places.
    server.faults(step_seconds=0.2)
    long = {**WRITE, "max_tokens": 300}
    with (
        server.opened("/v1/completions", long) as first,
        server.opened("/v1/completions", long) as second,
        openai.OpenAI(base_url=f"{server.address}/v1", api_key="x", max_retries=0) as client,
    ):
        server.wait_for(lambda m: m["num_running"] == 2, "cpm1-mini")
        with concurrent.futures.ThreadPoolExecutor(3) as pool:
            waiting = [pool.submit(server.post, "/v1/completions", WRITE) for _ in range(3)]
            server.wait_for(lambda m: m["num_waiting"] == 3, "cpm1-mini")
            reply = server.post("/v1/completions", {**WRITE, "stream": True})
            assert (reply.status, reply.code) == (429, "server_overloaded")
            assert 1 <= int(reply.headers["retry-after"]) <= 120
            assert reply.headers["x-should-retry"] == "true"
            with pytest.raises(openai.RateLimitError):
                client.completions.create(**WRITE)
            # Another model is not kept busy by this one.
            assert server.post("/v1/chat/completions", CHAT).status == 200
            metrics = server.get("/metrics").body.decode()
            assert 'rejected_total{model="cpm1-mini",reason="queue"} 2.0' in metrics
            for connection in (first, second):
                connection.close()
            server.faults()
            assert [future.result().status for future in waiting] == [200, 200, 200]


def test_prompts_of_a_request_that_does_not_fit_the_queue_are_all_called_off(server):
    server.faults(step_seconds=0.1)
    reply = server.post("/v1/completions", {**WRITE, "prompt": ["清晨"] * 12})
    assert reply.status == 429
    server.faults()
    server.wait_until_idle("cpm1-mini")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/completions", {"n": 10_000}, "n"),
        ("/v1/completions", {"best_of": 10_000}, "best_of"),
        ("/v1/completions", {"n": 3, "best_of": 2}, "best_of"),
        ("/v1/completions", {"best_of": 2, "stream": True}, "best_of"),
        ("/v1/completions", {"max_tokens": 2**31}, "max_tokens"),
        ("/v1/completions", {"prompt": ["x"] * 17}, "prompt"),
        ("/v1/completions", {"echo": True, "logprobs": 1}, "echo"),
        ("/v1/completions", {"logprobs": 6}, "logprobs"),
        ("/v1/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("/v1/chat/completions", {"n": 5}, "n"),
        ("/v1/chat/completions", {"top_logprobs": 3}, "top_logprobs"),
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ("/v1/chat/completions", {"max_completion_tokens": 5}, "max_completion_tokens"),
        ("/v1/chat/completions", {"tools": [{"type": "function"}]}, "tools"),
        ("/v1/chat/completions", {"tool_choice": "required"}, "tool_choice"),
        ("/v1/chat/completions", {"response_format": {"type": "xml"}}, "response_format.type"),
        (
            "/v1/chat/completions",
            {"response_format": {"type": "json_schema"}},
            "response_format.json_schema",
        ),
        ("/v1/chat/completions", {"messages": []}, "messages"),
    ],
)
def test_a_field_beyond_its_limit_is_named(server, path, fields, param):
    reply = server.post(path, {**REQUESTS[path], **fields})
    assert reply.status == 400
    assert reply.json()["error"]["param"] == param


def test_any_number_of_tokens_may_be_asked_for_and_ends_where_the_slot_is_full(server):
    reply = server.post("/v1/completions", {**WRITE, "prompt": "清晨" * 230, "max_tokens": 10**9})
    assert reply.status == 200
    assert reply.json()["usage"]["completion_tokens"] < 600


def test_a_schema_that_is_too_deep_or_too_large_is_refused_before_it_is_compiled(server):
    deep: dict = {"type": "string"}
    for _ in range(20):
        deep = {"type": "array", "items": [deep]}
    large = {"enum": ["x" * 100] * 1000}
    for schema in (deep, large):
        format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        reply = server.post("/v1/chat/completions", {**CHAT, "response_format": format})
        assert (reply.status, reply.code) == (400, "invalid_json_schema")


def test_an_answer_can_be_held_to_json(server):
    format = {
        "type": "json_schema",
        "json_schema": {
            "name": "mood",
            "schema": {
                "type": "object",
                "properties": {"good": {"type": "boolean"}},
                "required": ["good"],
                "additionalProperties": False,
            },
        },
    }
    body = {**CHAT, "max_tokens": 60, "response_format": format, "temperature": 0}
    answer = server.post("/v1/chat/completions", body).json()
    value = json.loads(answer["choices"][0]["message"]["content"])
    assert type(value["good"]) is bool


@pytest.mark.parametrize("path", REQUESTS)
@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{", b"\xff", b'{"model": NaN}', b'{"max_tokens": 1e309}', b"[" * 100_000]
)
def test_bodies_that_are_no_json_object_are_400(server, path, raw):
    reply = server.post(path, raw)
    assert reply.status == 400
    assert "error" in reply.json()


_ODD = st.sampled_from(
    [-1, 2**63, 2**63 - 1, 10**30, 1e308, -0.0, True, False, "", "x", [], {}, [None], "😀" * 50]
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_odd_values_are_answered_and_the_model_lives(server, data):
    path = data.draw(st.sampled_from(sorted(REQUESTS)))
    names = [*REQUESTS[path], "temperature", "top_k", "seed", "stop", "n", "stream", "options"]
    body = {**REQUESTS[path], data.draw(st.sampled_from(names)): data.draw(_ODD)}
    reply = server.post(path, body)
    assert reply.status in (200, 400, 404), reply.body
    if reply.status != 200:
        assert "error" in reply.json()
        assert "Traceback" not in reply.body.decode()
    assert server.model("cpm1-mini")["num_restarts"] == 0


@pytest.mark.slow
def test_probes_and_lists_answer_at_once_while_models_load_and_while_they_write(tmp_path):
    # Median of several: another program may hold both cores for a while.
    (tmp_path / "faults.json").write_text(json.dumps({"load_seconds": 2}))
    with running_server(tmp_path, models=["cpm1-mini"], api_key="sk-1") as server:
        assert server.get("/v1/models").json()["data"][0]["id"] == "cpm1-mini"
        assert_prompt(server)
        health = server.get("/health")
        assert (health.status, health.code) == (503, "loading")
        assert health.json()["error"]["message"] == "Loading model"
        assert int(health.headers["retry-after"]) >= 1
        assert server.get("/readyz").status == 503
        assert server.get("/api/plan").json() == {"models": {"cpm1-mini": None}}
        reply = server.post("/v1/completions", WRITE)
        assert (reply.status, reply.code) == (503, "model_unavailable")
        assert reply.headers["x-should-retry"] == "true"
        server.wait_until_loaded()
        server.faults()
        assert server.get("/health").json() == {"status": "ok"}
        plan = server.get("/api/plan").json()["models"]["cpm1-mini"]
        assert plan["phases"]["decode"][0]["tier"] == "ram"
        body = {**WRITE, "n": 4, "max_tokens": 60}
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            writing = pool.submit(server.post, "/v1/completions", body)
            server.wait_for(lambda m: m["num_jobs"] == 1, "cpm1-mini")
            assert_prompt(server)
            assert writing.result().status == 200
        # The key guards all but the probes.
        server.headers = {}
        assert server.get("/livez").status == server.get("/health").status == 200
        assert server.get("/v1/models").status == server.get("/metrics").status == 401


def assert_prompt(server):
    for path in ("/livez", "/v1/models"):
        seconds = sorted(server.get(path).seconds for _ in range(9))
        assert seconds[4] < 0.2, seconds


def test_nothing_that_a_request_names_is_fetched():
    looked_up = []

    def audit(event, arguments):
        if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "open"):
            looked_up.append((event, str(arguments)[:200]))

    app = idle_app()
    ask(app, "POST", "/v1/chat/completions", body={**CHAT, "messages": []})  # imports are done
    sys.addaudithook(lambda event, arguments: is_on and audit(event, arguments))
    for url in (
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "http:\\\\169.254.169.254",
        "https://example.com/redirect?to=http://127.0.0.1",
    ):
        part = {"type": "image_url", "image_url": {"url": url}}
        body = {**CHAT, "messages": [{"role": "user", "content": [part]}]}
        is_on = True
        reply = ask(app, "POST", "/v1/chat/completions", body=body)
        is_on = False
        assert (reply.status, reply.code) == (400, "unsupported_content_part")
    assert looked_up == []
