"""Signs of life of streams that have nothing to say."""

import asyncio
import json

import pytest

from martlet.server.app import create_app
from martlet.server.heartbeat import Heartbeat
from martlet.server.settings import ServerSettings

from .asgi import ask_in_loop
from .serving import faulty, running, served, writing


def signs(heartbeat, positions, seconds):
    """(when, place told) of each sign; ``positions`` are (since when, place)."""
    told, now = [], 0.0
    while now < seconds:
        position = [place for since, place in positions if since <= now][-1]
        now += heartbeat.wait_seconds(position, now)
        position = [place for since, place in positions if since <= now][-1]
        if heartbeat.is_due(position, now):
            told.append((now, position))
    return told


@pytest.mark.parametrize(
    ("positions", "told"),
    [
        ([(0, None)], [(10, None), (20, None)]),
        ([(0, 3)], [(1, 3), (11, 3)]),
        ([(0, 0)], [(1, 0), (11, 0)]),
        # Moves are told, the newest of each second alone, and the silence counts from there.
        ([(0, 3), (4.5, 2), (5.2, 1), (5.4, 0)], [(1, 3), (5, 2), (6, 0), (16, 0)]),
        # Having left the queue is no news: the text itself follows.
        ([(0, 1), (2.5, None)], [(1, 1), (11, None), (21, None)]),
    ],
)
def test_a_place_in_the_queue_is_told_soon_and_when_it_changes(positions, told):
    assert signs(Heartbeat(10, 0), positions, 20) == told


def test_what_is_sent_is_a_sign_of_life_too():
    heartbeat = Heartbeat(10, 0)
    heartbeat.note_sent(7)
    assert heartbeat.wait_seconds(None, 8) == 9
    assert not heartbeat.is_due(None, 16)
    assert heartbeat.is_due(None, 17)


def test_short_silences_are_kept_while_a_request_waits():
    assert signs(Heartbeat(0.25, 0), [(0, 2)], 1) == [(0.25 * i, 2) for i in range(1, 5)]


def test_a_client_hears_how_the_queue_before_it_moves():
    model = served("cpm1-mini", slots=1)
    with running([model], faulty(slow_step_seconds=0.05)) as (run, backend):
        # So long a silence that only the queue can be what is told of.
        app = create_app(backend, ServerSettings((model,), heartbeat_seconds=1000))
        body = {"model": "cpm1-mini", "prompt": "清晨", "max_tokens": 3, "stream": True}
        said = asyncio.Queue()

        async def check():
            served_model = backend.find("cpm1-mini")
            async with (
                served_model.submit(writing(max_tokens=400), "a") as running_job,
                served_model.submit(writing(max_tokens=400), "a") as waiting_job,
            ):
                await anext(running_job)
                asking = asyncio.create_task(ask_in_loop(app, body, said.put_nowait))
                assert await said.get() == b": ping queue=1\n\n"
                await running_job.cancel()
                assert await said.get() == b": ping\n\n"
                await waiting_job.cancel()
                reply = await asking
                assert reply.status == 200
                *_, last, end, _ = reply.body.split(b"\n\n")
                assert end == b"data: [DONE]"
                assert json.loads(last.removeprefix(b"data: "))["object"] == "text_completion"

        run(check())
