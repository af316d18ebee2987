"""Queue, cancellation, crashes and the end, with the real process and injected faults."""

import asyncio
import gc
import os
import random
import signal
import time

import psutil
import pytest

from martlet.errors import (
    CapacityError,
    ContextLengthError,
    MartletError,
    ModelNotFoundError,
    OverloadedError,
    UnavailableError,
)

from .serving import collect, faulty, is_alive, job, running, served, text_of, until, writing

MARK = "此处有毒"
CRASH_MARK = "此处有雷"
STEP_SECONDS = 0.02


@pytest.fixture(scope="module")
def slow():
    """One slot, slow steps, a queue of two: whatever is waited for can be met."""
    command = faulty(slow_step_seconds=STEP_SECONDS, nan_mark=MARK)
    limits = {"max_queue": 2, "max_queued_tokens": 1000}
    with running([served("cpm1-mini", slots=1)], command, **limits) as (run, backend):
        yield run, backend.find("cpm1-mini")


@pytest.fixture(scope="module")
def wide():
    """Four slots and logits that are no numbers for some prompts."""
    command = faulty(nan_mark=MARK, crash_mark=CRASH_MARK, slow_step_seconds=0.005)
    with running([served("cpm1-mini")], command, max_queue=1000) as (run, backend):
        yield run, backend.find("cpm1-mini")


async def started(submitted):
    """Wait until a job has left the queue."""
    async for event in submitted:
        if event["event"] == "started":
            return
    raise AssertionError("it never started")


async def idle(model):
    """Wait until the process itself says that it has nothing left."""
    await until(
        lambda: (
            model.status is not None
            and model.status["num_running"] + model.status["num_waiting"] == 0
        )
    )


def is_empty(model):
    return (model.num_running, model.num_waiting) == (0, 0)


# The queue.


def test_an_unknown_name_is_told_with_those_that_there_are(wide):
    with (
        pytest.raises(ModelNotFoundError, match="cpm1-mini"),
        running([served("cpm1-mini")], ("true",)) as (_, backend),
    ):
        backend.find("gpt-9")


def test_a_full_queue_is_refused_at_once_and_nothing_of_it_is_sent(slow):
    run, model = slow

    async def check():
        async with (
            model.submit(writing(max_tokens=60), "a") as first,
            model.submit(writing(max_tokens=60), "a") as second,
            model.submit(writing(max_tokens=60), "a") as third,
        ):
            await started(first)
            assert (second.position, third.position) == (0, 1)
            assert (model.num_running, model.num_waiting) == (1, 2)
            before = time.perf_counter()
            with pytest.raises(OverloadedError) as caught:
                model.submit(writing(max_tokens=60), "a")
            assert time.perf_counter() - before < 0.05
            assert 1 <= caught.value.retry_after_seconds <= 120
            assert caught.value.http_status == 429
            await until(lambda: model.status and model.status["num_waiting"] == 2)
            assert model.status["num_running"] + model.status["num_waiting"] == 3
        assert model.num_rejected_total["queue"] == 1
        await idle(model)

    run(check())


def test_long_prompts_trip_the_bound_of_tokens_and_a_short_one_is_served(slow):
    run, model = slow

    async def check():
        async with model.submit(writing(max_tokens=20), "a") as first:
            await started(first)
            waiting = model.submit(writing("雪" * 700, max_tokens=1), "a")
            for _ in range(4):
                with pytest.raises(OverloadedError):
                    model.submit(writing("雪" * 700, max_tokens=1), "a")
            assert model.num_rejected_total["tokens"] == 4
            await waiting.cancel()
            events = await collect(model, writing("雪" * 10, max_tokens=2))
            assert events[-1]["event"] == "finished"
        with pytest.raises(ContextLengthError):
            model.submit(writing("雪" * 1001), "a")
        await idle(model)

    run(check())


def test_retry_after_grows_with_what_waits(slow):
    run, model = slow

    async def check():
        await collect(model, writing(max_tokens=150))  # some seconds, so that a speed is known
        await idle(model)
        assert model.retry_after_seconds == 1
        async with model.submit(writing(max_tokens=400), "a") as first:
            await started(first)
            one = model.retry_after_seconds
            async with model.submit(writing(max_tokens=400), "a"):
                assert model.retry_after_seconds > 1.5 * one > 1.5
        await idle(model)

    run(check())


def test_before_anything_was_written_the_speed_of_the_warm_up_tells_when_to_come_back():
    # A process of its own: the others have been measured.
    with running([served("cpm1-mini", slots=1)]) as (run, backend):
        model = backend.find("cpm1-mini")

        async def check():
            num_tokens = round(20 * model.hello["tokens_per_second"])
            async with model.submit(writing(max_tokens=num_tokens), "a"):
                assert model.retry_after_seconds == pytest.approx(20, rel=0.05)

        run(check())


# Calling jobs off.


@pytest.mark.parametrize("when", ["at once", "queued", "reading", "decoding"])
def test_a_job_that_is_left_is_gone_within_a_step(slow, when):
    run, model = slow

    async def check():
        await collect(model, writing(max_tokens=1))
        await idle(model)
        before = model.status["output_tokens_total"]
        blocker = model.submit(writing(max_tokens=500), "a") if when == "queued" else None
        if blocker is not None:
            await started(blocker)
        prompt = "雪" * 600 if when == "reading" else "却说"  # some chunks of 256 tokens
        async with model.submit(writing(prompt, max_tokens=500), "a") as submitted:
            if when in ("reading", "decoding"):
                await started(submitted)
            if when == "decoding":
                await anext(submitted)
        if blocker is not None:
            assert (model.num_running, model.num_waiting) == (1, 0)
            await blocker.cancel()
        assert is_empty(model)
        seen = model.status
        await until(
            lambda: (
                model.status is not seen
                and model.status["num_running"] + model.status["num_waiting"] == 0
            )
        )
        assert model.status["cache_tokens"] == 0
        # What was asked for would have been 500 tokens, one a step.
        written = model.status["output_tokens_total"]
        assert written - before < 100
        await asyncio.sleep(5 * STEP_SECONDS)
        assert model.status["output_tokens_total"] == written

    run(check())


def test_a_wait_that_is_given_up_loses_no_event(slow):
    run, model = slow
    spec = writing(max_tokens=10, seed=3)

    async def check():
        events, num_given_up = [], 0
        async with model.submit(spec, "a") as submitted:
            while True:
                try:
                    events.append(await asyncio.wait_for(anext(submitted), 0.005))
                except TimeoutError:
                    num_given_up += 1
                except StopAsyncIteration:
                    break
        assert num_given_up > 5
        assert text_of(events) == text_of(await collect(model, spec)) != ""
        assert [events[0]["event"], events[-1]["event"]] == ["started", "finished"]

    run(check())


def test_a_job_that_takes_longer_than_allowed_is_ended():
    with running([served("cpm1-mini")], faulty(slow_step_seconds=0.1), request_seconds=0.5) as (
        run,
        backend,
    ):
        model = backend.find("cpm1-mini")

        async def check():
            with pytest.raises(UnavailableError, match=r"0\.5 s") as caught:
                await collect(model, writing(max_tokens=500))
            assert caught.value.retry_after_seconds is None
            assert is_empty(model)
            await idle(model)

        run(check())


@pytest.mark.slow
def test_nothing_grows_over_some_hundred_jobs_of_which_many_are_left(wide):
    run, model = wide
    draw = random.Random(4)

    async def one(number):
        spec = writing(
            f"却说第{number}回，", max_tokens=draw.randrange(1, 8), n=draw.choice([1, 2])
        )
        async with model.submit(spec, f"client {number % 5}") as submitted:
            patience = draw.choice([0, 1, 3, 1000])
            async for _ in submitted:
                patience -= 1
                if patience <= 0:
                    return

    async def many(count):
        await asyncio.gather(*(one(number) for number in range(count)))
        await idle(model)

    async def check():
        await many(60)
        ours, theirs = psutil.Process(), psutil.Process(model.pid)
        before = [(p.num_fds(), p.num_threads(), p.memory_info().rss) for p in (ours, theirs)]
        await many(150)
        assert is_empty(model)
        after = [(p.num_fds(), p.num_threads(), p.memory_info().rss) for p in (ours, theirs)]
        for (fds, threads, rss), (fds_now, threads_now, rss_now) in zip(before, after, strict=True):
            assert fds_now <= fds
            assert threads_now <= threads
            assert rss_now - rss < 8 << 20
        assert model.status["cache_tokens"] == 0

    run(check())


# What goes wrong.


def test_logits_that_are_no_numbers_end_their_request_and_no_other(wide):
    run, model = wide

    async def check():
        pid = model.pid
        others = [
            asyncio.create_task(collect(model, writing(max_tokens=30, seed=s))) for s in (1, 2)
        ]
        with pytest.raises(MartletError) as caught:
            await collect(model, writing(f"却说{MARK}，", max_tokens=30))
        assert caught.value.http_status == 500
        for events in await asyncio.gather(*others):
            assert events[-1]["event"] == "finished"
            assert events[-1]["stats"]["output_tokens"] == 30
        assert model.state == "ready"
        assert model.pid == pid
        await collect(model, writing(max_tokens=2))

    run(check())


def test_a_pass_that_runs_out_of_memory_costs_one_text_and_is_counted():
    with running([served("cpm1-mini")], faulty(out_of_memory_at_pass=5)) as (run, backend):
        model = backend.find("cpm1-mini")

        async def check():
            outcomes = await asyncio.gather(
                *(collect(model, writing(max_tokens=30, seed=s)) for s in (1, 2)),
                return_exceptions=True,
            )
            assert sorted(isinstance(o, CapacityError) for o in outcomes) == [False, True]
            await idle(model)
            assert model.status["out_of_memory_total"] == 1
            assert (model.state, model.num_restarts) == ("ready", 0)

        run(check())


def test_a_killed_process_fails_its_jobs_and_is_back_for_the_next(wide):
    run, model = wide

    async def check():
        num_restarts = model.num_restarts
        running_job = model.submit(writing(max_tokens=500), "a")
        await started(running_job)
        await anext(running_job)
        os.kill(model.pid, signal.SIGKILL)
        with pytest.raises(UnavailableError) as caught:
            async for _ in running_job:
                pass
        assert 1 <= caught.value.retry_after_seconds <= 120
        assert model.state == "restarting"
        assert "signal 9" in model.failure
        assert is_empty(model)
        with pytest.raises(UnavailableError) as caught:
            model.submit(writing(max_tokens=2), "a")
        assert 1 <= caught.value.retry_after_seconds <= 120
        lost = time.monotonic()
        await until(lambda: model.state == "ready")
        assert time.monotonic() - lost < 30  # some seconds where nothing else runs
        assert (model.failure, model.num_restarts) == (None, num_restarts + 1)
        assert text_of(await collect(model, writing(max_tokens=3)))

    run(check())


def test_the_sixth_crash_is_the_last_and_its_reason_is_kept():
    with running([served("cpm1-mini")], faulty(exit_at_once=11), first_delay_seconds=0.01) as (
        run,
        backend,
    ):
        model = backend.find("cpm1-mini")
        assert model.state == "failed"
        assert model.num_restarts == 5
        assert "exit code 11" in model.failure
        assert "the disk has gone" in model.failure

        async def check():
            with pytest.raises(UnavailableError, match="the disk has gone") as caught:
                model.submit(writing(), "a")
            assert caught.value.retry_after_seconds is None

        run(check())


def test_a_job_that_kills_the_process_does_not_come_back_with_the_next(wide):
    run, model = wide

    async def check():
        num_restarts = model.num_restarts
        with pytest.raises(UnavailableError):
            await collect(model, writing(CRASH_MARK))
        await until(lambda: model.state == "ready")
        assert text_of(await collect(model, writing(max_tokens=2)))
        assert model.num_restarts == num_restarts + 1

    run(check())


# The end.


def test_draining_lets_what_runs_end_and_refuses_what_waits():
    with running([served("cpm1-mini", slots=1)], faulty(slow_step_seconds=0.01)) as (run, backend):
        model = backend.find("cpm1-mini")

        async def check():
            first = asyncio.create_task(collect(model, writing(max_tokens=40)))
            await backend.wait_until(lambda: model.num_waiting == 1)
            await until(lambda: model.num_running == 1)
            waiting = [asyncio.create_task(collect(model, writing(max_tokens=5))) for _ in "abc"]
            await asyncio.sleep(0)
            assert model.num_waiting == 3
            backend.drain()
            assert backend.is_draining
            for outcome in await asyncio.gather(*waiting, return_exceptions=True):
                assert isinstance(outcome, UnavailableError)
                assert outcome.retry_after_seconds >= 1
            with pytest.raises(UnavailableError):
                model.submit(writing(), "a")
            await backend.wait_until_idle()
            assert len(text_of(await first)) > 20
            pid = model.pid
            await backend.stop()
            assert not is_alive(pid)

        run(check())


def test_stopping_while_a_model_loads_leaves_no_process():
    async def check():
        from martlet.server.backend import Backend
        from martlet.server.settings import ServerSettings

        settings = ServerSettings(models=(served("cpm1-mini"), served("eva-mini")))
        backend = Backend(settings, faulty(slow_load_seconds=60))
        async with backend:
            await until(lambda: all(model.pid for model in backend.models.values()))
            pids = [model.pid for model in backend.models.values()]
            with pytest.raises(UnavailableError) as caught:
                backend.find("eva-mini").submit(writing(), "a")
            assert 1 <= caught.value.retry_after_seconds <= 120
        assert not any(map(is_alive, pids))

    asyncio.run(asyncio.wait_for(check(), 60))


@pytest.fixture
def few_objects():
    """No garbage collection looks at what tests have imported, which a server never does."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.slow
@pytest.mark.usefixtures("few_objects")
def test_the_event_loop_is_never_blocked_while_models_load_and_decode():
    async def check():
        from martlet.server.backend import Backend
        from martlet.server.settings import ServerSettings

        gaps = []

        async def watch():
            while True:
                before = time.thread_time()
                await asyncio.sleep(0.01)
                # Time that this thread itself computed: another program on the core is no fault.
                gaps.append(time.thread_time() - before)

        settings = ServerSettings(models=(served("cpm1-mini"), served("cpm2-mini")))
        async with Backend(settings) as backend:
            watcher = asyncio.create_task(watch())
            await backend.wait_until_settled()
            cpm1, cpm2 = backend.models.values()
            fill = job({"kind": "fill", "pieces": ["却说", "，便", "。"]}, max_tokens=60, n=4)
            await asyncio.gather(
                *(collect(cpm1, writing(max_tokens=60, n=4, top_logprobs=20)) for _ in range(3)),
                *(collect(cpm2, fill) for _ in range(3)),
            )
            watcher.cancel()
        assert len(gaps) > 20
        assert max(gaps) < 0.1

    asyncio.run(asyncio.wait_for(check(), 120))
