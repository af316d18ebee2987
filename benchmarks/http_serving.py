"""The load of serving.py on a bundled model, but over HTTP: the whole way to a client and back.

    python benchmarks/http_serving.py --models cpm1-mini,cpm2-mini,eva-mini

Starts `martlet serve` for each model, asks for streamed answers and writes rows beside those of the
engine alone, so that the difference is what process, wire and JSON cost. Needs httpx2 (in [dev]).
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import httpx2
import psutil
import torch

import martlet
import serving
from martlet.bench.measure_batch import Load, StreamedText, summarise
from martlet.bench.record import checkout_commit
from martlet.device.probe import probe_cpu

SENTENCE = "却说那日天色已晚，众人走到山前，只见一座古庙。"
# A token of these models is about one and a half characters of this sentence.
CHARACTERS_PER_TOKEN = 1.5


def main() -> None:
    """Measure every model at every number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="cpm1-mini,cpm2-mini,eva-mini")
    parser.add_argument("--clients", default="1,4,16")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=4, help="that count, of each client")
    parser.add_argument("--slots", default="16")
    parser.add_argument("--out", type=Path, default=serving.RESULTS)
    options = parser.parse_args()
    for name in options.models.split(","):
        rows = _measure(name, options)
        serving.store(options.out, rows, None)
        for row in rows:
            print(serving.line(row), flush=True)


def _measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "martlet", "serve", name, "--port", "0", "--json"]
    command += ["--device", "cpu", "--slots", options.slots]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        assert process.stdout is not None
        events = (json.loads(line) for line in process.stdout)
        address = next(event["address"] for event in events if event["event"] == "ready")
        loads = [
            Load(int(clients), options.prompt_tokens, options.output_tokens, options.texts)
            for clients in options.clients.split(",")
        ]
        return asyncio.run(_measure_at(address, name, loads, psutil.Process(process.pid)))
    finally:
        process.terminate()
        process.wait()


async def _measure_at(
    address: str, name: str, loads: list[Load], server: psutil.Process
) -> list[dict[str, Any]]:
    rows = []
    async with httpx2.AsyncClient(base_url=address, timeout=600) as client:
        await _ask(client, name, Load(1, 8, 4), StreamedText(0, 0, 0.0), random.Random(0))
        for load in loads:
            texts = await asyncio.gather(
                *(_client(client, name, load, number) for number in range(load.num_clients))
            )
            rows.append(summarise(load, [text for of_client in texts for text in of_client]))
        status = (await client.get("/api/status")).json()["models"][0]
        plan = (await client.get("/api/plan")).json()["models"][name]
    processes = [server, *server.children(recursive=True)]
    common = {
        "shape": f"{name} over HTTP",
        "quantize": "int8",
        "device": probe_cpu().name,
        "torch": torch.__version__,
        "commit": checkout_commit(Path(martlet.__file__).parent),
        "command": "python benchmarks/http_serving.py " + " ".join(sys.argv[1:]),
        "date": date.today().isoformat(),
        "gpu_memory_budget_bytes": None,
        "num_slots": status["num_slots"],
        "slot_tokens": status["slot_tokens"],
        "encoder_tokens": status["encoder_tokens"],
        "chunk_tokens": None,
        "streamed_bytes_per_step": 0,
        "kv_cache_bytes": plan["kv_cache_bytes"],
        "peak_process_bytes": sum(process.memory_info().rss for process in processes),
        "peak_gpu_process_bytes": None,
    }
    return [{**common, **row} for row in rows]


async def _client(
    client: httpx2.AsyncClient, name: str, load: Load, number: int
) -> list[StreamedText]:
    """The texts of one client, one after the other."""
    texts = []
    chosen = random.Random(number)
    for index in range(load.num_texts // load.num_clients):
        text = StreamedText(number, index, time.perf_counter())
        await _ask(client, name, load, text, chosen)
        texts.append(text)
    return texts


async def _ask(
    client: httpx2.AsyncClient, name: str, load: Load, text: StreamedText, chosen: random.Random
) -> None:
    """One streamed answer; notes when each piece came, and how many tokens the server counted."""
    num_characters = int(load.prompt_tokens * CHARACTERS_PER_TOKEN * chosen.uniform(0.5, 1.5))
    prompt = (SENTENCE * (num_characters // len(SENTENCE) + 1))[:num_characters]
    body: dict[str, Any] = {
        "model": name,
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": round(load.output_tokens * chosen.uniform(0.5, 1.5)),
        "temperature": 0.8,
        "top_p": 0.9,
        "seed": text.number,
    }
    is_chat = name.startswith("eva")
    body |= {"messages": [{"role": "user", "content": prompt}]} if is_chat else {"prompt": prompt}
    path = "/v1/chat/completions" if is_chat else "/v1/completions"
    async with client.stream("POST", path, json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if chunk.get("usage"):
                _spread(text, chunk["usage"]["completion_tokens"])
            elif chunk["choices"][0].get("text") or chunk["choices"][0].get("delta", {}).get(
                "content"
            ):
                text.token_seconds.append(time.perf_counter())


def _spread(text: StreamedText, num_tokens: int) -> None:
    """Tokens that made no visible text of their own came with the piece before."""
    pieces = len(text.token_seconds)
    if pieces and num_tokens > pieces:
        missing = num_tokens - pieces
        text.token_seconds = sorted(
            [
                *text.token_seconds,
                *(text.token_seconds[i * pieces // missing] for i in range(missing)),
            ]
        )
    text.is_done = True


if __name__ == "__main__":
    main()
