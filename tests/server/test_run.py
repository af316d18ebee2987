"""Whole servers as processes: addresses, signals, and what is left behind."""

import concurrent.futures
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from .serving import children_of, is_alive

KEY = "sk-very-secret"


class Server:
    """`martlet serve ... --json` as a process."""

    def __init__(self, *arguments, env=None):
        options = ("--port", "0", "--json", "--device", "cpu", "--threads", "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "martlet", "serve", *arguments, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.lines = queue.Queue()
        self.stderr = []
        self._readers = [
            threading.Thread(target=read, daemon=True) for read in (self._read, self._read_stderr)
        ]
        for reader in self._readers:
            reader.start()

    def _read(self):
        with self.process.stdout as lines:
            for line in lines:
                self.lines.put(json.loads(line))

    def _read_stderr(self):
        with self.process.stderr as lines:
            self.stderr.extend(lines)

    def wait_for(self, event):
        line = self.lines.get(timeout=60)
        assert line["event"] == event
        return line

    def wait_until_ready(self):
        self.address = self.wait_for("listening")["address"]
        self.wait_for("ready")
        return self

    def workers(self):
        return children_of(self.process.pid)

    def ask(self, path, body=None, key=None, timeout=60):
        """(status, headers, JSON or text) of a request."""
        request = urllib.request.Request(
            self.address + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={"content-type": "application/json"}
            | ({"authorization": f"Bearer {key}"} if key else {}),
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.headers, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read().decode()

    def write(self, max_tokens, **fields):
        body = {"model": "cpm1-mini", "prompt": "却说那老汉", "max_tokens": max_tokens, **fields}
        return self.ask("/v1/completions", body)

    def finish(self, timeout=60):
        """Wait for the end; the exit code and all of stderr."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code, "".join(self.stderr)


@pytest.fixture
def start():
    servers = []

    def start(*arguments, **options):
        servers.append(Server(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        workers = server.workers()
        server.process.kill()
        server.finish()
        for pid in workers:
            wait_until_gone(pid)


def wait_until_gone(pid, timeout_seconds=20):
    deadline = time.monotonic() + timeout_seconds
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} was left behind"
        time.sleep(0.02)


def wait_until(condition, timeout_seconds=30):
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running_and_waiting(server):
    model = json.loads(server.ask("/api/status")[2])["models"][0]
    return model["num_running"], model["num_waiting"]


def test_sigterm_lets_what_runs_end_refuses_what_waits_and_leaves_nothing(start):
    server = start("cpm1-mini", "--slots", "1").wait_until_ready()
    (worker,) = server.workers()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        running = pool.submit(server.write, 200)
        wait_until(lambda: running_and_waiting(server) == (1, 0))
        waiting = [pool.submit(server.write, 5) for _ in range(3)]
        wait_until(lambda: running_and_waiting(server) == (1, 3))
        server.process.send_signal(signal.SIGTERM)
        for answer in waiting:
            status, headers, body = answer.result()
            assert status == 503
            assert 1 <= float(headers["retry-after"]) <= 120
            assert json.loads(body)["error"]["message"]
        # The port still answers, and says that this server ends.
        assert server.ask("/health")[0] == 503
        status, headers, _ = server.write(5)
        assert status == 503
        assert 1 <= float(headers["retry-after"]) <= 120
        status, _, body = running.result()
        assert status == 200
        assert json.loads(body)["usage"]["completion_tokens"] == 200
    code, stderr = server.finish()
    assert code == 0, stderr
    assert not is_alive(worker)
    assert "Traceback" not in stderr


def test_what_runs_longer_than_the_drain_gets_an_error_and_the_exit_code_is_0(start):
    server = start("cpm1-mini", "--slots", "1", "--drain", "0.2").wait_until_ready()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.write, 900)
        wait_until(lambda: running_and_waiting(server) == (1, 0))
        server.process.send_signal(signal.SIGINT)
        assert running.result()[0] == 503
    assert server.finish()[0] == 0


def test_a_second_signal_does_not_wait(start):
    server = start("cpm1-mini", "--slots", "1").wait_until_ready()
    (worker,) = server.workers()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.write, 900)
        wait_until(lambda: running_and_waiting(server) == (1, 0))
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: server.ask("/health")[0] == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=5) == 128 + signal.SIGTERM
        assert running.exception() is not None
    wait_until_gone(worker)


def test_a_killed_server_leaves_no_process(start):
    server = start("cpm1-mini", "eva-mini")
    server.wait_for("listening")
    wait_until(lambda: len(server.workers()) == 2)
    workers = server.workers()
    server.process.kill()
    for pid in workers:
        wait_until_gone(pid)


def test_the_models_are_listed_at_once_while_they_load_and_keys_and_prompts_are_not_logged(start):
    server = start("cpm1-mini", env={"MARTLET_API_KEY": KEY})
    server.address = server.wait_for("listening")["address"]
    before = time.perf_counter()
    status, _, body = server.ask("/v1/models?note=weiss-ich-nicht", key=KEY)
    assert time.perf_counter() - before < 2
    assert (status, json.loads(body)["data"][0]["id"]) == (200, "cpm1-mini")
    assert server.ask("/v1/models")[0] == 401
    assert server.ask("/livez")[0] == 200
    ready = server.wait_for("ready")
    assert [model["state"] for model in ready["models"]] == ["ready"]
    body = {"model": "cpm1-mini", "prompt": "莫要记下", "max_tokens": 2}
    assert server.ask("/v1/completions", body, key=KEY)[0] == 200
    server.process.terminate()
    code, stderr = server.finish()
    assert code == 0
    assert '"GET /v1/models HTTP/1.1" 200' in stderr
    for secret in (KEY, "weiss-ich-nicht", "莫要记下"):
        assert secret not in stderr


def test_where_no_model_can_be_loaded_the_server_ends_with_its_error(start, tmp_path):
    (tmp_path / "martlet.json").write_text("{not json")
    server = start(str(tmp_path))
    code, stderr = server.finish()
    assert code == 6
    assert stderr.splitlines()[-1].startswith("error: ")
