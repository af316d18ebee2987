"""The supervisor with small processes of every bad habit; the real one is in test_worker.py."""

import asyncio
import contextlib
import os
import sys
import time

import pytest

from martlet.server.supervisor import MAX_RESTARTS, RestartPolicy, Supervisor

CONFIGURATION = {"op": "configure", "folder": "/nowhere", "options": {}}
HELLO = "import json, os, socket, sys, time\ns = socket.socket(fileno=int(sys.argv[1]))\n" + (
    "lines = s.makefile('rb')\n"
    "def send(**m): s.sendall(json.dumps(m).encode() + b'\\n')\n"
    "first = json.loads(lines.readline())\n"
)


class Heard:
    """Keeps what a supervisor tells."""

    def __init__(self):
        self.messages = []
        self.losses = []
        self._changed = asyncio.Event()

    def on_message(self, message):
        self.messages.append(message)
        self._changed.set()

    def on_lost(self, reason, error, delay_seconds):
        self.losses.append((reason, error, delay_seconds))
        self._changed.set()

    async def wait_for(self, condition):
        async with asyncio.timeout(30):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.asynccontextmanager
async def supervised(script, *, prelude=HELLO, first_delay_seconds=0.01, load_turn=None):
    heard = Heard()
    supervisor = Supervisor(
        "test",
        (sys.executable, "-c", prelude + script),
        CONFIGURATION,
        heard,
        RestartPolicy(first_delay_seconds),
        load_turn or asyncio.Lock(),
    )
    task = asyncio.create_task(supervisor.run())
    try:
        yield supervisor, heard, task
    finally:
        await supervisor.stop(grace_seconds=1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_delays_double_and_end_after_five_restarts_in_ten_minutes():
    policy = RestartPolicy()
    assert [policy.next_delay_seconds(t) for t in range(6)] == [0.5, 1, 2, 4, 8, None]
    # The first two restarts, of seconds 0 and 1, are long ago by then.
    assert policy.next_delay_seconds(601.5) == 4.0


def test_messages_go_both_ways_and_the_configuration_comes_first():
    async def check():
        script = (
            "send(op='hello', first=first)\n"
            "for line in lines: send(op='echo', heard=json.loads(line))\n"
        )
        async with supervised(script) as (supervisor, heard, _):
            await heard.wait_for(lambda: heard.messages)
            supervisor.send({"op": "cancel", "id": "字\ud800"})  # half a surrogate pair, too
            await heard.wait_for(lambda: len(heard.messages) == 2)
        assert heard.messages[0]["first"] == CONFIGURATION
        assert heard.messages[1]["heard"]["id"] == "字\ud800"
        assert heard.losses == []

    asyncio.run(check())


def test_a_process_that_keeps_dying_is_started_five_more_times_and_then_stays_down(caplog):
    async def check():
        script = "print('the last words', file=sys.stderr)\nos._exit(9)\n"
        async with supervised(script, first_delay_seconds=0.001) as (_, heard, task):
            await asyncio.wait_for(task, 60)
        assert len(heard.losses) == MAX_RESTARTS + 1
        assert [delay is None for _, _, delay in heard.losses] == [False] * 5 + [True]
        reason = heard.losses[-1][0]
        assert "exit code 9" in reason
        assert "the last words" in reason

    asyncio.run(check())
    assert "the last words" in caplog.text


def test_what_a_model_says_of_its_own_failure_is_final_where_it_never_loaded():
    async def check():
        error = {"name": "CapacityError", "message": "12 MiB missing", "is_worth_retrying": True}
        async with supervised(f"send(op='failure', error={error!r})\n") as (_, heard, task):
            await asyncio.wait_for(task, 30)
        assert heard.losses == [("12 MiB missing", error, None)]

    asyncio.run(check())


def test_a_killed_process_is_replaced():
    async def check():
        script = "send(op='hello', pid=os.getpid())\nlines.read()\n"
        async with supervised(script) as (supervisor, heard, _):
            await heard.wait_for(lambda: heard.messages)
            first = supervisor.pid
            os.kill(first, 9)
            await heard.wait_for(lambda: len(heard.messages) == 2)
            assert "signal 9" in heard.losses[0][0]
            assert supervisor.pid not in (None, first)

    asyncio.run(check())


def test_stop_asks_first_and_kills_what_does_not_listen():
    async def check():
        script = (
            "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "send(op='hello')\ntime.sleep(600)\n"
        )
        async with supervised(script) as (supervisor, heard, task):
            await heard.wait_for(lambda: heard.messages)
            pid = supervisor.pid
            start = time.monotonic()
            await supervisor.stop(grace_seconds=0.2)
            assert time.monotonic() - start < 5
            assert not is_alive(pid)
            await asyncio.wait_for(task, 10)
        assert heard.losses == []

    asyncio.run(check())


def test_a_cancelled_supervisor_leaves_no_process():
    async def check():
        async with supervised("send(op='hello')\ntime.sleep(600)\n") as (supervisor, heard, task):
            await heard.wait_for(lambda: heard.messages)
            pid = supervisor.pid
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            async with asyncio.timeout(10):
                while is_alive(pid):
                    await asyncio.sleep(0.01)

    asyncio.run(check())


def test_a_command_that_does_not_exist_counts_as_a_crash():
    async def check():
        heard = Heard()
        supervisor = Supervisor(
            "test",
            ("/no/such/program",),
            CONFIGURATION,
            heard,
            RestartPolicy(0.001),
            asyncio.Lock(),
        )
        await asyncio.wait_for(supervisor.run(), 30)
        assert len(heard.losses) == MAX_RESTARTS + 1
        assert "could not be started" in heard.losses[-1][0]

    asyncio.run(check())


def test_models_load_one_after_the_other():
    async def check():
        turn = asyncio.Lock()
        script = (
            "start = time.monotonic()\ntime.sleep(0.2)\nsend(op='hello', s=start)\nlines.read()\n"
        )
        async with (
            supervised(script, load_turn=turn) as (_, one, _),
            supervised(script, load_turn=turn) as (_, two, _),
        ):
            await one.wait_for(lambda: one.messages)
            await two.wait_for(lambda: two.messages)
        starts = sorted([one.messages[0]["s"], two.messages[0]["s"]])
        assert starts[1] - starts[0] >= 0.2

    asyncio.run(check())


def test_a_process_that_dies_while_it_loads_gives_up_its_turn():
    async def check():
        turn = asyncio.Lock()
        async with supervised("os._exit(3)\n", load_turn=turn) as (_, heard, _):
            await heard.wait_for(lambda: heard.losses)
            await asyncio.wait_for(turn.acquire(), 30)
            turn.release()

    asyncio.run(check())


def test_the_key_of_the_server_is_not_given_to_the_process(monkeypatch):
    monkeypatch.setenv("MARTLET_API_KEY", "k3y")

    async def check():
        script = "send(op='hello', names=sorted(os.environ))\nlines.read()\n"
        async with supervised(script) as (_, heard, _):
            await heard.wait_for(lambda: heard.messages)
        assert "MARTLET_API_KEY" not in heard.messages[0]["names"]
        assert "PATH" in heard.messages[0]["names"]

    asyncio.run(check())


@pytest.mark.parametrize("line", ["b'x' * 200_000", "b'\\xff\\xfe'"])
def test_odd_lines_on_stderr_do_no_harm(line):
    async def check():
        script = f"sys.stderr.buffer.write({line} + b'\\n')\nsys.stderr.flush()\nos._exit(4)\n"
        async with supervised(script, first_delay_seconds=30) as (_, heard, _):
            await heard.wait_for(lambda: heard.losses)
        assert "exit code 4" in heard.losses[0][0]
        assert len(heard.losses[0][0]) < 500

    asyncio.run(check())
