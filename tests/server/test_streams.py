"""What goes over the wire while an answer is written, byte by byte, and what ends it."""

import contextlib
import json
import time

import pytest

from .client import TIMEOUT_SECONDS, events

CHAT = {"model": "eva-mini", "messages": [{"role": "user", "content": "你好"}], "seed": 1}
WRITE = {"model": "cpm1-mini", "prompt": "清晨", "seed": 1, "max_tokens": 400}


def read_until(connection, mark):
    """What comes up to a mark and whatever came with it."""
    received = b""
    while mark not in received:
        piece = connection.recv(65536)
        assert piece, f"the connection ended: {received!r}"
        received += piece
    return received


def test_a_stream_of_events_has_the_bytes_that_clients_expect(server):
    reply = server.post("/v1/chat/completions", {**CHAT, "stream": True, "max_tokens": 12})
    assert reply.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert reply.headers["cache-control"] == "no-cache"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["x-request-id"]
    assert b"\nid:" not in reply.body
    assert b"\nevent:" not in reply.body
    assert reply.body.endswith(b"data: [DONE]\n\n")
    chunks = events(reply)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-1]["choices"][0]["delta"] == {}
    # Characters are themselves, not escapes, and none is cut.
    assert "\\u" not in reply.body.decode("utf-8", "strict")
    for line in reply.body.split(b"\n"):
        assert "\ufffd" not in line.decode("utf-8", "strict")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "cpm1-mini", "prompt": "😀𠮷清晨", "max_tokens": 24, "n": 2}),
        ("/v1/fill", {"model": "cpm2-mini", "text": "他说__，😀__𠮷。", "alternatives": 3}),
        ("/v1/chat/completions", {**CHAT, "temperature": 2, "n": 2, "max_tokens": 24}),
        ("/api/chat", {**CHAT, "options": {"temperature": 2, "num_predict": 24}}),
    ],
)
@pytest.mark.parametrize("seed", [1, 2])
def test_every_line_is_whole_characters_also_for_improbable_texts(server, path, body, seed):
    options = {**body.get("options", {}), "seed": seed} if "options" in body else None
    seeded = {**body, "options": options} if options else {**body, "seed": seed}
    reply = server.post(path, {**seeded, "stream": True})
    assert reply.status == 200
    for line in reply.body.split(b"\n"):
        assert "\ufffd" not in line.decode("utf-8", "strict")


def test_signs_of_life_come_while_the_model_reads(server):
    # The shared server sends one each 0.2 s; the model needs a second for its first step.
    server.faults(step_seconds=1.0)
    with server.opened("/v1/completions", {**WRITE, "max_tokens": 2, "stream": True}) as connection:
        connection.settimeout(0.9)  # a client that gives up before the first token comes
        received = read_until(connection, b": ping\n\n")
        connection.settimeout(TIMEOUT_SECONDS)
        received += read_until(connection, b"[DONE]")
    head, _, body = received.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert body.index(b": ping") < body.index(b"data: ")
    assert b"id:" not in body.replace(b'"id":', b"")


def test_a_place_in_the_queue_is_told_while_a_request_waits(server):
    server.faults(step_seconds=0.3)
    stream = {**WRITE, "stream": True}
    with server.opened("/v1/completions", {**stream, "n": 2}) as running:
        read_until(running, b"data: ")
        with server.opened("/v1/completions", stream) as first:
            server.wait_for(lambda m: m["num_waiting"] == 1, "cpm1-mini")
            with server.opened("/v1/completions", stream) as second:
                assert b": ping queue=1\n\n" in read_until(second, b": ping")
                assert b"queue" not in read_until(first, b": ping")
    server.faults()
    server.wait_until_idle("cpm1-mini")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_its_text_is_written_frees_the_slot(server, stream):
    with server.opened("/v1/completions", {**WRITE, "stream": stream}):
        server.wait_for(lambda m: m["num_running"] == 1, "cpm1-mini")
        server.faults(step_seconds=0.05)  # 400 tokens would take 20 s
    left = time.monotonic()
    server.wait_until_idle("cpm1-mini")
    assert time.monotonic() - left < 10
    cancelled = 'martlet_requests_finished_total{model="cpm1-mini",reason="cancelled"}'
    assert cancelled in server.get("/metrics").body.decode()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_while_it_waits_is_forgotten(server, stream):
    server.faults(step_seconds=0.05)
    with server.opened("/v1/completions", {**WRITE, "n": 2}):
        server.wait_for(lambda m: m["num_running"] == 2, "cpm1-mini")
        with server.opened("/v1/completions", {**WRITE, "stream": stream}):
            server.wait_for(lambda m: m["num_waiting"] == 1, "cpm1-mini")
        server.wait_for(lambda m: m["num_waiting"] == 0, "cpm1-mini")
        model = server.model("cpm1-mini")
        assert (model["num_jobs"], model["num_running"]) == (1, 2)
    server.faults()
    server.wait_until_idle("cpm1-mini")


def test_a_client_that_leaves_while_its_prompt_is_read_frees_the_slot(server):
    server.faults(step_seconds=1.0)
    with server.opened("/v1/completions", {**WRITE, "prompt": "清晨" * 100}):
        server.wait_for(lambda m: m["num_jobs"] == 1, "cpm1-mini")
    server.wait_until_idle("cpm1-mini")


def test_a_client_that_does_not_read_is_dropped_and_others_are_served(server):
    # Some 300 kB: more than the buffers on the way take, which the tests keep small.
    many = {**WRITE, "n": 2, "logprobs": 5, "stream": True, "max_tokens": 200}
    with server.opened("/v1/completions", many, receive_bytes=4096) as connection:
        server.wait_for(lambda m: m["num_jobs"] == 1, "cpm1-mini")
        reply = server.post("/v1/chat/completions", {**CHAT, "max_tokens": 4})
        assert reply.status == 200
        server.wait_until_idle("cpm1-mini")
        received = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(65536):
                received += piece
    assert b"[DONE]" not in received
    assert "without completing" not in server.log()


def test_a_killed_model_is_an_error_in_the_stream_and_comes_back(server):
    server.faults(step_seconds=0.05)
    with server.opened("/v1/chat/completions", {**CHAT, "stream": True}) as connection:
        received = read_until(connection, b"data: ")
        server.faults(killed=True)
        while piece := connection.recv(65536):
            received += piece
            if b"0\r\n\r\n" in piece:
                break
    last = received.split(b"data: ")[-1].split(b"\n\n")[0]
    error = json.loads(last)["error"]
    assert error["type"] == "server_error"
    assert isinstance(error["code"], str)
    assert b"[DONE]" not in received
    unready = server.get("/readyz")
    assert unready.status == 503
    assert "eva-mini" in unready.json()["error"]["message"]
    server.faults()
    server.wait_for(lambda m: m["state"] == "ready", "eva-mini")
    assert server.post("/v1/chat/completions", {**CHAT, "max_tokens": 3}).status == 200
    assert server.get("/readyz").status == 200
