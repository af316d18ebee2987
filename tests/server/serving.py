"""What tests of models in processes share: jobs, backends, and looking at processes."""

import asyncio
import contextlib
import json
import os
import sys
from importlib.resources import files
from pathlib import Path

from martlet.server.backend import WORKER_COMMAND, Backend
from martlet.server.settings import ModelSettings, ServerSettings
from martlet.server.supervisor import RestartPolicy

ZOO = Path(str(files("martlet"))) / "zoo"
FAULTY_WORKER = Path(__file__).with_name("faulty_worker.py")
OPENING = "却说那老汉推开门，"


def faulty(**faults):
    """The command of a process with these faults."""
    return (sys.executable, str(FAULTY_WORKER), json.dumps(faults))


def served(name, **options):
    """A bundled model on one thread of the CPU."""
    options = {"device": "cpu", "num_threads": 1, "slots": 4, **options}
    return ModelSettings(name, str(ZOO / name), options)


def job(task, *, n=1, top_logprobs=None, **params):
    return {
        "task": task,
        "params": params,
        "num_choices": n,
        "top_logprobs": top_logprobs,
        "format": None,
    }


def writing(prompt=OPENING, **options):
    """A job for cpm1-mini."""
    return job({"kind": "write", "prompt": prompt}, **options)


@contextlib.contextmanager
def running(models, command=WORKER_COMMAND, *, first_delay_seconds=0.05, **settings):
    """(run, backend): ``run`` runs a coroutine in the loop of a backend that is ready."""
    with asyncio.Runner() as runner:
        backend = Backend(
            ServerSettings(models=tuple(models), **settings),
            command,
            lambda: RestartPolicy(first_delay_seconds),
        )

        def run(work, timeout_seconds=120):
            return runner.run(asyncio.wait_for(work, timeout_seconds))

        run(backend.__aenter__())
        try:
            run(backend.wait_until_settled())
            yield run, backend
        finally:
            run(backend.stop())


async def collect(model, spec, client="test"):
    """All events of a job."""
    async with model.submit(spec, client) as submitted:
        return [event async for event in submitted]


def text_of(events, choice=0):
    return "".join(e["text"] for e in events if e["event"] == "text" and e["choice"] == choice)


def is_alive(pid):
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def children_of(pid):
    """Processes whose parent this is."""
    found = []
    for entry in os.listdir("/proc"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if entry.isdigit():
                fields = Path(f"/proc/{entry}/stat").read_text().rpartition(") ")[2].split()
                if int(fields[1]) == pid:
                    found.append(int(entry))
    return found


async def until(condition, timeout_seconds=30):
    """Wait for what no event tells of."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():
            await asyncio.sleep(0.01)
