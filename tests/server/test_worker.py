"""The process of a model, with the bundled models: jobs in, events out."""

import json
import math
import signal
import socket
import subprocess
import sys

import pytest

import martlet
from martlet.errors import ContextLengthError, UsageError

from .serving import (
    OPENING,
    ZOO,
    collect,
    faulty,
    is_alive,
    job,
    running,
    served,
    text_of,
    until,
    writing,
)


@pytest.fixture(scope="module")
def minis():
    with running([served("cpm1-mini"), served("cpm2-mini"), served("eva-mini")]) as started:
        yield started


@pytest.fixture(scope="module")
def cpm1():
    return martlet.load(ZOO / "cpm1-mini", device="cpu", num_threads=1)


def test_every_model_says_hello_with_what_it_is(minis):
    _, backend = minis
    hellos = {name: model.hello for name, model in backend.models.items()}
    assert [h["family"] for h in hellos.values()] == ["cpm1", "cpm2", "eva"]
    assert [h["tasks"] for h in hellos.values()] == [["write"], ["fill", "write"], ["chat"]]
    assert [h["can_embed"] for h in hellos.values()] == [False, True, True]
    for hello in hellos.values():
        assert hello["num_slots"] == 4
        assert hello["slot_tokens"] > 100
        assert hello["weight_bytes"] > 10 << 20
        assert hello["plan"]["device"] == "cpu"
        assert hello["tokens_per_second"] > 1


def test_a_job_writes_what_the_model_writes_alone(minis, cpm1):
    run, backend = minis
    events = run(collect(backend.find("cpm1-mini"), writing(max_tokens=24, temperature=0, seed=7)))
    assert [events[0]["event"], events[-1]["event"]] == ["started", "finished"]
    assert events[0]["seed"] == 7
    assert text_of(events) == cpm1.write(OPENING, max_tokens=24, temperature=0)
    stats = events[-1]["stats"]
    assert stats["output_tokens"] == 24
    assert stats["prompt_tokens"] == events[0]["prompt_tokens"]
    assert events[-1]["finish_reason"] == "length"


def test_choices_count_their_seeds_up(minis):
    run, backend = minis
    model = backend.find("cpm1-mini")
    events = run(collect(model, writing(n=3, max_tokens=8, seed=40)))
    started = {e["choice"]: e["seed"] for e in events if e["event"] == "started"}
    assert started == {0: 40, 1: 41, 2: 42}
    third = run(collect(model, writing(max_tokens=8, seed=42)))
    assert text_of(events, choice=2) == text_of(third)
    assert len({text_of(events, choice) for choice in range(3)}) == 3


def test_log_probabilities_are_told_token_by_token_and_their_bytes_are_the_text(minis):
    run, backend = minis
    spec = writing(max_tokens=12, temperature=0, top_logprobs=3)
    events = run(collect(backend.find("cpm1-mini"), spec))
    tokens = [token for event in events for token in event.get("tokens", ())]
    assert len(tokens) == 12
    assert b"".join(bytes(token["bytes"]) for token in tokens).decode() == text_of(events)
    for token in tokens:
        assert len(token["top"]) == 3
        assert -9999.0 <= token["logprob"] <= 0
        assert all(math.isfinite(top["logprob"]) for top in token["top"])
        assert token["id"] in [top["id"] for top in token["top"]]  # greedy, so among the best
        best = token["top"][0]
        assert (best["id"], best["text"]) == (token["id"], token["text"])


def test_blanks_are_told_piece_by_piece_and_whole_at_the_end(minis):
    run, backend = minis
    pieces = ["却说宋江见了，心中", "，便道：“", "？”"]
    spec = job({"kind": "fill", "pieces": pieces}, max_tokens=16, seed=5, top_logprobs=0)
    events = run(collect(backend.find("cpm2-mini"), spec))
    fill = events[-1]["fill"]
    for blank in fill["blanks"]:
        told = [e for e in events if e["event"] == "text" and e["blank"] == blank["index"]]
        assert "".join(event["text"] for event in told) == blank["text"]
        assert fill["text"][blank["start"] : blank["end"]] == blank["text"]
        tokens = [token for event in told for token in event.get("tokens", ())]
        assert tokens == blank["tokens"]
        assert blank["logprob"] == pytest.approx(
            sum(token["logprob"] for token in tokens if token["logprob"] is not None)
        )
        assert blank["probability"] == pytest.approx(math.exp(blank["logprob"]))
        raw = b"".join(bytes(token["bytes"]) for token in tokens)
        assert raw.decode("utf-8", "replace") == blank["text"]
    one, two = (blank["text"] for blank in fill["blanks"])
    assert fill["text"] == f"{pieces[0]}{one}{pieces[1]}{two}{pieces[2]}"


def test_tokens_vectors_and_chat_are_jobs_too(minis):
    run, backend = minis
    eva = backend.find("eva-mini")
    text = "你这汉子是谁？"
    (result,) = run(collect(eva, job({"kind": "tokenize", "text": text})))
    assert result["event"] == "result"
    ids = result["value"]
    (result,) = run(collect(eva, job({"kind": "detokenize", "token_ids": ids})))
    assert result["value"].replace("?", "？") == text
    (result,) = run(collect(eva, job({"kind": "embed", "inputs": [text, "雪", text] * 50})))
    assert len(result["value"]) == 150  # more than one pass
    assert result["value"][0] == pytest.approx(result["value"][2], abs=1e-4)
    assert sum(x * x for x in result["value"][1]) == pytest.approx(1, abs=1e-3)
    messages = [{"role": "user", "content": text}]
    events = run(collect(eva, job({"kind": "chat", "messages": messages}, max_tokens=8, seed=1)))
    assert text_of(events)


def test_more_vectors_than_a_message_should_hold_are_refused_with_the_limit(minis):
    run, backend = minis
    eva = backend.find("eva-mini")
    with pytest.raises(UsageError, match="at most 2,048") as caught:
        run(collect(eva, job({"kind": "embed", "inputs": ["雪"] * 2049})))
    assert "2,049" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "task", "params", "error"),
    [
        ("cpm1-mini", {"kind": "write", "prompt": ""}, {}, UsageError),
        ("cpm1-mini", {"kind": "fill", "pieces": ["一", "二"]}, {}, UsageError),
        ("cpm1-mini", {"kind": "embed", "inputs": ["一"]}, {}, UsageError),
        ("cpm1-mini", {"kind": "write", "prompt": "一"}, {"top_p": 7}, UsageError),
        ("cpm1-mini", {"kind": "write", "prompt": "一"}, {"seed": -1}, UsageError),
        ("cpm1-mini", {"kind": "complete", "prompt": "雪" * 3000}, {}, ContextLengthError),
        ("cpm2-mini", {"kind": "fill", "pieces": ["雪花" * 900, "。"]}, {}, ContextLengthError),
    ],
)
def test_what_only_the_model_can_check_comes_as_its_own_error(minis, name, task, params, error):
    run, backend = minis
    with pytest.raises(error) as caught:
        run(collect(backend.find(name), job(task, **params)))
    assert caught.value.http_status == 400
    assert run(collect(backend.find("cpm1-mini"), writing(max_tokens=2)))  # others go on


def test_the_figures_of_a_model_are_told_while_it_works_and_when_it_rests(minis):
    run, backend = minis
    model = backend.find("cpm1-mini")

    async def check():
        before = model.status["output_tokens_total"] if model.status else 0
        await collect(model, writing(max_tokens=30))
        await until(lambda: model.status and model.status["output_tokens_total"] >= before + 30)
        await until(lambda: model.status["num_running"] == 0)
        assert model.status["tokens_per_second"] > 1
        assert model.status["rss_bytes"] > 50 << 20
        assert model.status["cache_tokens"] == 0
        assert model.status["cache_capacity_tokens"] >= 4 * model.hello["slot_tokens"]

    run(check())


# The process by itself, without a supervisor.


@pytest.fixture
def lone_worker():
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "martlet.server.worker", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
        stderr=subprocess.PIPE,
    )
    theirs.close()
    yield process, ours
    ours.close()
    if process.poll() is None:
        process.kill()
    process.communicate()


def configure(ours, name="cpm1-mini", **options):
    options = {"device": "cpu", "num_threads": 1, "slots": 1, **options}
    message = {"op": "configure", "folder": str(ZOO / name), "options": options}
    ours.sendall(json.dumps(message).encode() + b"\n")


def test_a_closed_socket_ends_the_process_at_once_even_while_it_imports(lone_worker):
    process, ours = lone_worker
    ours.close()
    assert process.wait(timeout=10) == 0
    assert process.stderr.read() == b""


def test_ctrl_c_is_not_for_it_and_sigterm_is(lone_worker):
    process, ours = lone_worker
    configure(ours)
    with ours.makefile("rb") as lines:
        assert json.loads(lines.readline())["op"] == "hello"
        process.send_signal(signal.SIGINT)
        submit = {"op": "submit", "id": "1", "client": "", "job": writing(max_tokens=2)}
        ours.sendall(json.dumps(submit).encode() + b"\n")
        while json.loads(lines.readline()).get("event") != "finished":
            pass
        process.terminate()
        assert process.wait(timeout=10) == -signal.SIGTERM


def test_what_cannot_be_loaded_is_told_with_its_error_and_exit_code(lone_worker, tmp_path):
    process, ours = lone_worker
    (tmp_path / "martlet.json").write_text("{not json")
    message = {"op": "configure", "folder": str(tmp_path), "options": {}}
    ours.sendall(json.dumps(message).encode() + b"\n")
    with ours.makefile("rb") as lines:
        failure = json.loads(lines.readline())
    assert failure["op"] == "failure"
    assert failure["error"]["name"] == "ModelFileError"
    assert not failure["error"]["is_worth_retrying"]
    assert process.wait(timeout=10) == 6


def test_a_server_that_does_not_read_stops_no_step(lone_worker):
    _, ours = lone_worker
    configure(ours)
    with ours.makefile("rb", buffering=0) as lines:
        assert json.loads(lines.readline())["op"] == "hello"
        long_answer = job({"kind": "detokenize", "token_ids": [100] * 20_000})
        for number, spec in enumerate([long_answer] * 8 + [writing(max_tokens=40)]):
            submit = {"op": "submit", "id": str(number), "client": "", "job": spec}
            ours.sendall(json.dumps(submit).encode() + b"\n")
        # Far more than a socket holds waits to be written; the text is written meanwhile.
        seconds = []
        while not seconds:
            message = json.loads(lines.readline())
            if message.get("event") == "finished":
                seconds.append(message["stats"]["decode_seconds"])
    assert seconds[0] < 20


def test_the_process_of_http_does_not_import_torch():
    code = (
        "import sys, martlet.server.run, martlet.cli.serve, martlet.server.protocol\n"
        "print(sorted({'torch', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr


def test_an_unexpected_error_in_a_step_ends_the_process_and_quotes_no_prompt(caplog):
    with running([served("cpm1-mini")], faulty(raise_at_step=3, secret="却说")) as (run, backend):
        model = backend.find("cpm1-mini")

        async def check():
            pid = model.pid
            with pytest.raises(martlet.UnavailableError) as caught:
                await collect(model, writing(max_tokens=50))
            assert caught.value.retry_after_seconds >= 1
            assert "却说" not in str(caught.value)
            await until(lambda: not is_alive(pid))
            await backend.wait_until(lambda: model.state == "ready" and model.num_restarts == 1)
            assert text_of(await collect(model, writing(max_tokens=2)))

        run(check())
    assert "KeyError" in caplog.text
    assert "却说" not in caplog.text
