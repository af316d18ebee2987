"""What Ollama's clients see: names, lines of JSON, nanoseconds."""

import datetime
import json

import pytest

from martlet.server.ollama import short_size

HELLO = [{"role": "user", "content": "你好"}]
OPTIONS = {"seed": 1, "num_predict": 8}


def lines(reply):
    """The objects of a stream; each is a line, and the last alone is done."""
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/x-ndjson"
    assert reply.body.endswith(b"\n")
    objects = [json.loads(line) for line in reply.body.decode("utf-8").splitlines()]
    assert [o["done"] for o in objects] == [False] * (len(objects) - 1) + [True]
    return objects


def assert_has_figures(last):
    assert last["done_reason"] in ("stop", "length")
    for name in ("total_duration", "prompt_eval_duration", "eval_duration", "load_duration"):
        assert type(last[name]) is int
    # Nanoseconds: a text takes more than a microsecond and less than an hour.
    assert 1_000 < last["eval_duration"] <= last["total_duration"] < 3_600_000_000_000
    assert last["prompt_eval_count"] > 0
    assert last["eval_count"] > 0


def test_models_are_listed_with_what_clients_look_for(server):
    models = server.get("/api/tags").json()["models"]
    assert [model["name"] for model in models] == ["cpm1-mini", "cpm2-mini", "eva-mini"]
    for model in models:
        assert model["model"] == model["name"]
        assert model["size"] > 1_000_000
        assert len(model["digest"]) == 64
        assert model["details"]["family"] in ("cpm1", "cpm2", "eva")
        assert model["details"]["quantization_level"] == "int8"
        datetime.datetime.fromisoformat(model["modified_at"])
    assert [m["details"]["parameter_size"] for m in models] == ["23.3M", "24.1M", "24.2M"]
    assert [m["name"] for m in server.get("/api/ps").json()["models"]] == [
        m["name"] for m in models
    ]
    assert server.get("/api/version").json()["version"]


def test_a_chat_comes_in_lines_unless_it_shall_not(server):
    body = {"model": "eva-mini", "messages": HELLO, "options": OPTIONS}
    objects = lines(server.post("/api/chat", body))
    text = "".join(o["message"]["content"] for o in objects)
    assert all(o["message"]["role"] == "assistant" for o in objects)
    assert_has_figures(objects[-1])
    whole = server.post("/api/chat", {**body, "stream": False}).json()
    assert whole["message"]["content"] == text != ""
    assert_has_figures(whole)
    tagged = server.post("/api/chat", {**body, "model": "eva-mini:latest", "stream": False}).json()
    assert tagged["message"] == whole["message"]


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "cpm1-mini", "prompt": "清晨"},
        {"model": "cpm1-mini", "prompt": "清晨", "raw": True},
        {"model": "cpm2-mini", "prompt": "今天", "suffix": "真好。"},
        {"model": "eva-mini", "prompt": "你好"},
    ],
)
def test_a_text_is_generated_as_the_model_can(server, fields):
    body = {**fields, "options": OPTIONS}
    objects = lines(server.post("/api/generate", body))
    assert_has_figures(objects[-1])
    whole = server.post("/api/generate", {**body, "stream": False}).json()
    assert whole["response"] == "".join(o["response"] for o in objects) != ""


def test_a_request_without_a_prompt_only_wants_the_model_in_memory(server):
    answer = server.post("/api/generate", {"model": "cpm1-mini"}).json()
    assert (answer["done"], answer["done_reason"], answer["response"]) == (True, "load", "")
    assert server.post("/api/chat", {"model": "eva-mini"}).json()["done_reason"] == "load"


def test_a_model_is_described(server):
    answer = server.post("/api/show", {"model": "cpm2-mini:latest"}).json()
    assert answer["model_info"]["cpm2.context_length"] > 100
    assert answer["model_info"]["general.parameter_count"] == 24_060_160  # as ``martlet show`` says
    assert answer["details"]["parameter_size"] == "24.1M"
    assert set(answer["capabilities"]) == {"completion", "insert", "embedding"}
    assert server.post("/api/show", {"name": "cpm1-mini"}).json()["capabilities"] == ["completion"]


@pytest.mark.parametrize(
    ("count", "size"), [(23_327_040, "23.3M"), (11_050_000_000, "11.1B"), (7e10, "70.0B")]
)
def test_sizes_are_short(count, size):
    assert short_size(count) == size


def test_texts_are_embedded(server):
    answer = server.post("/api/embed", {"model": "cpm2-mini", "input": ["今天", "明天"]}).json()
    assert len(answer["embeddings"]) == 2
    one = server.post("/api/embed", {"model": "cpm2-mini", "input": "今天"}).json()
    assert one["embeddings"][0] == pytest.approx(answer["embeddings"][0], abs=1e-4)


@pytest.mark.parametrize(
    ("path", "body", "status", "word"),
    [
        ("/api/chat", {"model": "none", "messages": HELLO}, 404, "none"),
        ("/api/chat", {"model": "cpm1-mini", "messages": HELLO}, 400, "eva-mini"),
        ("/api/chat", {"model": "eva-mini", "messages": HELLO, "tools": [{}]}, 400, "tool 1"),
        ("/api/chat", {"messages": HELLO}, 400, "model"),
        ("/api/generate", {"model": "cpm1-mini", "prompt": "x", "system": "y"}, 400, "system"),
        ("/api/generate", {"model": "cpm1-mini", "prompt": "x", "images": ["x"]}, 400, "images"),
        ("/api/generate", {"model": "cpm1-mini", "prompt": "x", "suffix": "y"}, 400, "cpm2-mini"),
        ("/api/generate", {"model": "eva-mini", "prompt": "x", "raw": True}, 400, "raw"),
        (
            "/api/generate",
            {"model": "cpm1-mini", "prompt": "x", "options": {"mirostat": 1}},
            400,
            "mirostat",
        ),
        ("/api/embed", {"model": "cpm1-mini", "input": "x"}, 400, "embeddings"),
        ("/api/show", {}, 400, "model"),
    ],
)
def test_errors_are_one_string(server, path, body, status, word):
    reply = server.post(path, body)
    assert reply.status == status
    assert word in reply.json()["error"]
    assert isinstance(reply.json()["error"], str)


def test_a_fault_in_the_middle_of_a_stream_is_its_last_line(server):
    connection = server.connect()
    body = {"model": "cpm1-mini", "prompt": "清晨", "options": {"num_predict": 400}}
    connection.request(
        "POST", "/api/generate", json.dumps(body), {"content-type": "application/json"}
    )
    answer = connection.getresponse()
    first = json.loads(answer.readline())
    server.faults(not_finite=True)
    *_, last = answer.read().decode().splitlines()
    connection.close()
    assert first["done"] is False
    assert "finite" in json.loads(last)["error"]
    server.faults()


def test_the_root_says_what_clients_of_ollama_look_for_and_browsers_get_a_page(server):
    reply = server.get("/", headers={"accept": "*/*"})
    assert reply.body == b"Ollama is running"
    page = server.get("/", headers={"accept": "text/html,application/xhtml+xml"})
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["cache-control"] == "no-cache"
    assert b"<html" in page.body
