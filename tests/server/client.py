"""Talks to a server of the tests, in bytes, so that nothing is smoothed over."""

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_SECONDS = 120
MODELS = ("cpm1-mini", "cpm2-mini", "eva-mini")


@dataclass
class Reply:
    status: int
    headers: dict
    body: bytes
    seconds: float

    def json(self):
        return json.loads(self.body)

    @property
    def code(self):
        return self.json()["error"]["code"]


class Server:
    """A running server; ``faults`` says what shall go wrong from now on."""

    def __init__(self, process, control, log):
        self.process, self._control, self._log = process, control, log
        self.address = json.loads(process.stdout.readline())["address"]
        self.host, self.port = self.address.removeprefix("http://").rsplit(":", 1)
        self.headers = {}

    def wait_until_loaded(self):
        states = json.loads(self.process.stdout.readline())["states"]
        assert set(states.values()) == {"ready"}, self.log()
        return self

    def log(self):
        return self._log.read_text()

    def faults(self, **faults):
        self._control.write_text(json.dumps(faults))

    def ask(self, method, path, body=None, headers=None):
        start = time.monotonic()
        with contextlib.closing(self.connect()) as connection:
            data = json.dumps(body).encode() if isinstance(body, dict | list) else body
            is_json = {} if body is None else {"content-type": "application/json"}
            connection.request(method, path, data, {**self.headers, **is_json, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
        received = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, received, content, time.monotonic() - start)

    def get(self, path, **options):
        return self.ask("GET", path, **options)

    def post(self, path, body, **options):
        return self.ask("POST", path, body, **options)

    def connect(self):
        return http.client.HTTPConnection(self.host, int(self.port), timeout=TIMEOUT_SECONDS)

    @contextlib.contextmanager
    def opened(self, path, body, receive_bytes=None):
        """A socket on which the request has been sent and nothing been read."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nhost: {self.host}:{self.port}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        )
        connection = socket.socket()
        with contextlib.closing(connection):
            if receive_bytes is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            connection.settimeout(TIMEOUT_SECONDS)
            connection.connect((self.host, int(self.port)))
            connection.sendall(head.encode() + data)
            yield connection

    def model(self, name):
        models = self.get("/api/status").json()["models"]
        return next(model for model in models if model["name"] == name)

    def wait_for(self, condition, name, seconds=TIMEOUT_SECONDS):
        """Ask for a model's figures until they are as they should be."""
        deadline = time.monotonic() + seconds
        while not condition(model := self.model(name)):
            assert time.monotonic() < deadline, f"never happened: {model}\n{self.log()}"
            time.sleep(0.02)
        return model

    def wait_until_idle(self, name):
        return self.wait_for(
            lambda m: (
                m["num_jobs"] == m["num_running"] == m["num_waiting"] == 0 and not m["cache_tokens"]
            ),
            name,
        )


def events(reply):
    """The objects of a stream of server-sent events; checks that nothing else stands in it."""
    *lines, end = reply.body.decode("utf-8", "strict").split("\n\n")
    assert end == ""
    assert lines[-1] == "data: [DONE]"
    kept = [line for line in lines[:-1] if not line.startswith(": ping")]
    assert all(line.startswith("data: ") for line in kept)
    return [json.loads(line.removeprefix("data: ")) for line in kept]


@contextlib.contextmanager
def running_server(folder: Path, **settings):
    """Start ``served.py`` and stop it with SIGTERM."""
    control, log = folder / "faults.json", folder / "server.log"
    settings = {"models": MODELS, "drain_seconds": 0.0, **settings}
    environment = {**os.environ, "MARTLET_TEST_CONTROL": str(control)}
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("served.py")), json.dumps(settings)],
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=environment,
        )
    with process:
        try:
            server = Server(process, control, log)
            if settings.get("api_key"):
                server.headers = {"authorization": f"Bearer {settings['api_key']}"}
            yield server
        finally:
            process.terminate()
            try:
                process.wait(20)
            finally:
                process.kill()
