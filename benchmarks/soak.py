"""A server under mixed load with clients that leave and faults: does anything grow?

    python benchmarks/soak.py --minutes 10 --output benchmarks/results/soak.json

The three bundled models are served on a free port by processes with faults (tests/server): a
request in a hundred, by a mark in its prompt, gets logits that are no numbers or kills the process.
One client in twenty leaves in the middle. Every few seconds RSS, file descriptors and threads of
the server and of its models, jobs and cache tokens are noted; the slopes over the second half, in
units an hour, are printed and written. The exit code is 1 where something grows or is left over.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import httpx2
import psutil

ROOT = Path(__file__).parents[1]
FAULTY_WORKER = ROOT / "tests" / "server" / "faulty_worker.py"
NAN_MARK, CRASH_MARK = "此处有毒", "此处有雷"
FAULTS = {"nan_mark": NAN_MARK, "crash_mark": CRASH_MARK}
LEAVES, FAULTY, CRASHES = 0.05, 0.01, 0.1  # crashes are a tenth of the faults
SAMPLE_SECONDS = 2.0
# What may be seen over the second half of a run without anything growing.
MOST_RSS_GROWTH_BYTES = 24 << 20
SERVE = """
import sys
from pathlib import Path
from martlet.server.run import serve
from martlet.server.settings import ModelSettings, ServerSettings
from martlet.server.supervisor import RestartPolicy

# Faults are meant to be more than five in ten minutes here.
RestartPolicy.next_delay_seconds = lambda self, now_seconds: 0.2


class Lines:
    def listening(self, address):
        print(address, flush=True)

    def settled(self, backend):
        print("ready", flush=True)


zoo = Path(sys.argv[1])
options = {"device": "cpu", "num_threads": 1, "slots": 4}
models = [ModelSettings(n, str(zoo / n), options) for n in ("cpm1-mini", "cpm2-mini", "eva-mini")]
serve(ServerSettings(tuple(models), port=0), Lines(), (sys.executable, sys.argv[2], sys.argv[3]))
"""


class Load:
    """Clients that ask one thing after the other."""

    def __init__(self, client: httpx2.AsyncClient, seed: int) -> None:
        self.outcomes: Counter[str] = Counter()
        self._client = client
        self._random = random.Random(seed)

    def request(self) -> tuple[str, dict]:
        """A path and a body."""
        draw = self._random
        mark = ""
        if draw.random() < FAULTY:
            mark = CRASH_MARK if draw.random() < CRASHES else NAN_MARK
        text = draw.choice(["却说那老汉", "次日清晨，众人", "话说天降大雪"]) * draw.randrange(1, 12)
        common = {"max_tokens": draw.randrange(1, 40), "stream": draw.random() < 0.5}
        return draw.choice(
            [
                (
                    "/v1/completions",
                    {"model": "cpm1-mini", "prompt": mark + text, "n": draw.choice([1, 1, 2])},
                ),
                (
                    "/v1/chat/completions",
                    {
                        "model": "eva-mini",
                        "messages": [{"role": "user", "content": mark + text[:40]}],
                        "logprobs": True,
                        "top_logprobs": 3,
                    },
                ),
                ("/v1/fill", {"model": "cpm2-mini", "text": f"{mark}{text}，__，便__。"}),
                ("/v1/embeddings", {"model": "eva-mini", "input": [text[:60]] * 3}),
                ("/v1/tokenize", {"model": "cpm1-mini", "content": text}),
            ]
        ), common

    async def run(self, until_seconds: float) -> None:
        """Ask until a time of the monotonic clock."""
        while time.monotonic() < until_seconds:
            (path, body), common = self.request()
            if path not in ("/v1/embeddings", "/v1/tokenize"):
                body |= common
            leaves = self._random.random() < LEAVES
            try:
                async with asyncio.timeout(self._random.uniform(0.01, 0.5) if leaves else 120):
                    outcome = await self._ask(path, body)
            except TimeoutError:
                outcome = "left" if leaves else "stuck"
            except httpx2.HTTPError as error:
                outcome = type(error).__name__
            self.outcomes[outcome] += 1
            if outcome in ("503", "429"):
                await asyncio.sleep(0.2)

    async def _ask(self, path: str, body: dict) -> str:
        async with self._client.stream("POST", path, json=body) as answer:
            text = ""
            async for chunk in answer.aiter_text():
                text += chunk
            if answer.status_code == 200 and '"error":{' in text.replace(" ", ""):
                return "error in stream"
            return str(answer.status_code)


class Watch:
    """Looks at the processes now and then."""

    def __init__(self, pid: int, client: httpx2.AsyncClient) -> None:
        self.samples: list[dict] = []
        self._server = psutil.Process(pid)
        self._client = client
        self._start = time.monotonic()

    async def run(self) -> None:
        """Note a sample every few seconds."""
        while True:
            with contextlib.suppress(psutil.Error, httpx2.HTTPError):
                self.samples.append(await self.sample())
            await asyncio.sleep(SAMPLE_SECONDS)

    async def sample(self) -> dict:
        """What there is now."""
        before = time.monotonic()
        answer = await self._client.get("/api/status")
        answer_seconds = time.monotonic() - before
        models = answer.json()["models"]
        workers = [p for p in self._server.children() if p.status() != psutil.STATUS_ZOMBIE]
        return {
            "seconds": before - self._start,
            "server_rss_bytes": self._server.memory_info().rss,
            "server_fds": self._server.num_fds(),
            "server_threads": self._server.num_threads(),
            "num_workers": len(workers),
            "workers_rss_bytes": sum(p.memory_info().rss for p in workers),
            "workers_fds": sum(p.num_fds() for p in workers),
            "workers_threads": sum(p.num_threads() for p in workers),
            "num_running": sum(model["num_running"] for model in models),
            "num_waiting": sum(model["num_waiting"] for model in models),
            "cache_tokens": sum(model["cache_tokens"] or 0 for model in models),
            "num_restarts": sum(model["num_restarts"] for model in models),
            "status_seconds": answer_seconds,
        }


def slope_per_hour(samples: list[dict], name: str) -> float:
    """The slope of a line through the second half of the samples with all models up."""
    points = [(s["seconds"], s[name]) for s in samples if s["num_workers"] == 3]
    points = points[len(points) // 2 :]
    if len(points) < 3:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return 3600 * sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


async def soak(options: argparse.Namespace) -> dict:
    """Start the server, load it, look at it, end it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        SERVE,
        str(ROOT / "src" / "martlet" / "zoo"),
        str(FAULTY_WORKER),
        json.dumps(FAULTS),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        address = (await process.stdout.readline()).decode().strip()
        await process.stdout.readline()
        limits = httpx2.Limits(max_connections=options.clients + 4)
        async with httpx2.AsyncClient(base_url=address, limits=limits, timeout=130) as client:
            return await _under_load(process, client, options)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _under_load(process, client: httpx2.AsyncClient, options: argparse.Namespace) -> dict:
    watch = Watch(process.pid, client)
    watching = asyncio.create_task(watch.run())
    start = time.monotonic()
    load = Load(client, options.seed)
    until = start + 60 * options.minutes
    await asyncio.gather(*(load.run(until) for _ in range(options.clients)))
    watching.cancel()
    await asyncio.sleep(5)  # what was left is cancelled, and the models have said so
    last = await watch.sample()
    pids = [child.pid for child in psutil.Process(process.pid).children()]
    process.send_signal(signal.SIGTERM)
    code = await asyncio.wait_for(process.wait(), 60)
    return {
        "minutes": options.minutes,
        "clients": options.clients,
        "seed": options.seed,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "outcomes": dict(load.outcomes.most_common()),
        "num_restarts": last["num_restarts"],
        "slopes_per_hour": {
            name: slope_per_hour(watch.samples, name)
            for name in watch.samples[0]
            if name.endswith(("rss_bytes", "fds", "threads"))
        },
        "longest_status_seconds": max(s["status_seconds"] for s in watch.samples),
        "after": last,
        "exit_code": code,
        "num_processes_left": sum(psutil.pid_exists(pid) for pid in pids),
        "samples": watch.samples,
    }


def problems(report: dict) -> list[str]:
    """What grew, or was left over."""
    half_hours = report["minutes"] / 60 / 2
    found = []
    for name, slope in report["slopes_per_hour"].items():
        growth = slope * half_hours
        if growth > (MOST_RSS_GROWTH_BYTES if name.endswith("bytes") else 3):
            found.append(f"{name} grew by {growth:,.0f}")
    for name in ("num_running", "num_waiting", "cache_tokens"):
        if report["after"][name]:
            found.append(f"{report['after'][name]} {name} were left")
    if report["exit_code"] or report["num_processes_left"]:
        found.append(
            f"exit code {report['exit_code']}, {report['num_processes_left']} processes left"
        )
    if report["outcomes"].get("stuck"):
        found.append(f"{report['outcomes']['stuck']} requests had no answer")
    return found


def main() -> int:
    """Run, print a summary, write everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = asyncio.run(soak(options))
    report["problems"] = problems(report)
    summary = {name: value for name, value in report.items() if name != "samples"}
    print(json.dumps(summary, ensure_ascii=False, indent=2))
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
