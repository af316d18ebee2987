"""Many texts at a time through one model: tokens per second of all, and the wait for the first."""

from __future__ import annotations

import datetime
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from martlet.api.loading import load
from martlet.api.opening import open_model
from martlet.bench.numbered_tokens import NumberedTokens
from martlet.bench.opening import Setting, open_shape_for_batch
from martlet.bench.record import checkout_commit
from martlet.bench.shapes import Shape
from martlet.device.gpu_memory import GpuMemoryWatch, nvml_reader
from martlet.device.probe import peak_rss_bytes, probe_cpu
from martlet.engine.batch import Batch
from martlet.engine.batch_limits import BatchLimits
from martlet.engine.batch_text import Event, Failed, Started
from martlet.engine.generator import Generator
from martlet.engine.request import Context, Finished, Request, SamplingParams, Suppress, TokenEvent
from martlet.memory.executor import Executor
from martlet.models.architecture import Architecture

__all__ = [
    "BatchRecord",
    "Load",
    "StreamedText",
    "measure_model_batch",
    "measure_shape_batch",
    "run_load",
    "summarise",
]


@dataclass(frozen=True)
class Load:
    """Clients that each ask for one text after the other, at once when the last one is there.

    Lengths vary evenly between half and one and a half of these, the same in every run. The first
    text of each client does not count.
    """

    num_clients: int
    prompt_tokens: int
    output_tokens: int
    texts_per_client: int = 4

    @property
    def num_texts(self) -> int:
        """Texts of all clients, those that do not count included."""
        return self.num_clients * (self.texts_per_client + 1)


@dataclass(frozen=True)
class BatchRecord:
    """One measurement of a load.

    Units:
        total_tokens_per_second: of all clients, while all of them were busy.
        time_to_first_token_p50_seconds, ..._p95_seconds: from asking, waiting included.
        tokens_per_second_of_one: median over texts, after their first token.
    """

    shape: str
    quantize: str
    device: str
    torch: str
    commit: str | None
    command: str
    date: str
    gpu_memory_budget_bytes: int | None
    num_clients: int
    num_slots: int
    slot_tokens: int
    encoder_tokens: int | None
    chunk_tokens: int
    prompt_tokens: int
    output_tokens: int
    num_texts: int
    total_tokens_per_second: float
    time_to_first_token_p50_seconds: float
    time_to_first_token_p95_seconds: float
    tokens_per_second_of_one: float
    streamed_bytes_per_step: int
    kv_cache_bytes: int
    peak_process_bytes: int
    peak_gpu_process_bytes: int | None


@dataclass(eq=False)
class StreamedText:
    """One text of one client, the first being number 0, and when its tokens came."""

    client: int
    number: int
    asked_seconds: float
    token_seconds: list[float] = field(default_factory=list)
    is_done: bool = False

    @property
    def is_counted(self) -> bool:
        """Whether it is not the first of its client."""
        return self.number > 0

    def deliver(self, event: Event) -> None:
        """Take what a batch tells of it."""
        if isinstance(event, Failed):
            raise event.error
        if isinstance(event, TokenEvent):
            self.token_seconds.append(time.perf_counter())
        self.is_done = self.is_done or isinstance(event, Finished)
        assert isinstance(event, Started | TokenEvent | Finished)


def measure_shape_batch(
    shape: Shape,
    setting: Setting,
    limits: BatchLimits,
    loads: Sequence[Load],
    command: str,
    progress: Callable[[int, int], None] | None = None,
) -> list[BatchRecord]:
    """One row for each load, all on the same random weights.

    ``progress`` is called with (loads done, loads).

    Raises:
        UsageError, CapacityError, ModelFileError: as ``open_shape``.
    """
    reader = nvml_reader() if setting.device != "cpu" else None
    with GpuMemoryWatch(reader) as watch:
        architecture, executor = open_shape_for_batch(shape, setting, limits)
        generator = Generator(architecture, executor, NumberedTokens(architecture.vocab_size))
        results = _run_all(Batch(generator, limits), generator, loads, progress)
    common = {
        **_machine(executor, limits),
        "shape": shape.name,
        "quantize": setting.form(executor.dtype),
        "gpu_memory_budget_bytes": setting.gpu_memory_bytes,
        "command": command,
        "peak_gpu_process_bytes": watch.peak_bytes if executor.device.type == "cuda" else None,
    }
    return [BatchRecord(**common, **result) for result in results]


def measure_model_batch(
    name: str, device: str, num_slots: int, loads: Sequence[Load], command: str
) -> list[BatchRecord]:
    """The same for a model that is here, in the form that it is stored in.

    Raises:
        ModelNotFoundError, CapacityError, UsageError, ModelFileError: as ``martlet.load``.
    """
    reader = nvml_reader() if device != "cpu" else None
    with GpuMemoryWatch(reader) as watch:
        model = load(name, device=device, slots=num_slots)
        results = _run_all(model.batch(), model.generator, loads, None)
    executor = model.generator.executor
    common = {
        **_machine(executor, model.batch_limits),
        "shape": name,
        "quantize": open_model(name).forms(None).quantize,
        "gpu_memory_budget_bytes": None,
        "command": command,
        "peak_gpu_process_bytes": watch.peak_bytes if executor.device.type == "cuda" else None,
    }
    return [BatchRecord(**common, **result) for result in results]


def _run_all(
    batch: Batch,
    generator: Generator,
    loads: Sequence[Load],
    progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    batch.warm_up()
    results = []
    for each in loads:
        results.append(run_load(batch, generator.architecture, each))
        if progress:
            progress(len(results), len(loads))
    return results


def run_load(batch: Batch, architecture: Architecture, load: Load) -> dict[str, Any]:
    """Ask for all texts of a load, step the batch until they are there, and sum up."""
    clients = [_requests(architecture, load, number) for number in range(load.num_clients)]
    latest: list[StreamedText | None] = [None] * load.num_clients
    texts: list[StreamedText] = []
    while len(texts) < load.num_texts or not all(text.is_done for text in texts):
        for number, requests in enumerate(clients):
            last = latest[number]
            request = next(requests, None) if last is None or last.is_done else None
            if request is not None:
                text = StreamedText(number, last.number + 1 if last else 0, time.perf_counter())
                latest[number] = text
                texts.append(text)
                batch.submit(request, text.deliver, client=str(number))
        batch.step()
    return summarise(load, texts)


def _requests(architecture: Architecture, load: Load, client: int) -> Iterator[Request]:
    chosen = random.Random(client)
    vocab_size = architecture.vocab_size
    nothing = Suppress(torch.zeros(vocab_size, dtype=torch.bool))

    def about(tokens: int) -> int:
        return max(1, round(tokens * chosen.uniform(0.5, 1.5)))

    for number in range(load.num_texts // load.num_clients):
        prompt = tuple(chosen.randrange(1, vocab_size) for _ in range(about(load.prompt_tokens)))
        has_encoder = architecture.has_encoder
        context = Context((prompt[0],), prompt) if has_encoder else Context(prompt)
        # Random weights find all tokens about as probable; trained ones leave a few to choose from.
        params = SamplingParams(
            max_tokens=about(load.output_tokens), temperature=0.8, top_k=50, top_p=0.9, seed=number
        )
        yield Request(context, params, nothing)


def summarise(load: Load, texts: Sequence[StreamedText]) -> dict[str, Any]:
    """The part of a record that follows from the texts of all clients.

    What counts came while all clients were busy: until the first of them had its last text.
    """
    counted = [text for text in texts if text.is_counted and text.token_seconds]
    texts = sorted(counted, key=lambda text: (text.number, text.client))
    first = sorted(text.token_seconds[0] - text.asked_seconds for text in texts)
    start = max(text.asked_seconds for text in texts[: load.num_clients])
    end = min(text.token_seconds[-1] for text in texts[-load.num_clients :])
    if end <= start:  # texts that end early are over before the slowest client begins to count
        start = min(text.asked_seconds for text in texts)
        end = max(text.token_seconds[-1] for text in texts)
    num_tokens = sum(start < when <= end for text in texts for when in text.token_seconds)
    rates = [
        (len(text.token_seconds) - 1) / (text.token_seconds[-1] - text.token_seconds[0])
        for text in texts
        if len(text.token_seconds) > 1
    ]
    return {
        "num_clients": load.num_clients,
        "prompt_tokens": load.prompt_tokens,
        "output_tokens": load.output_tokens,
        "num_texts": len(texts),
        "total_tokens_per_second": num_tokens / (end - start),
        "time_to_first_token_p50_seconds": statistics.median(first),
        "time_to_first_token_p95_seconds": first[min(len(first) - 1, int(0.95 * len(first)))],
        "tokens_per_second_of_one": statistics.median(rates),
    }


def _machine(executor: Executor, limits: BatchLimits) -> dict[str, Any]:
    on_gpu = executor.device.type == "cuda"
    plan = executor.plan
    return {
        "device": torch.cuda.get_device_name(executor.device) if on_gpu else probe_cpu().name,
        "torch": torch.__version__,
        "commit": checkout_commit(Path(__file__).parents[1]),
        "date": datetime.date.today().isoformat(),
        "num_slots": limits.num_slots,
        "slot_tokens": limits.slot_tokens,
        "encoder_tokens": limits.encoder_tokens,
        "chunk_tokens": limits.chunk_tokens,
        "streamed_bytes_per_step": plan.streamed_bytes("decode"),
        "kv_cache_bytes": plan.demand.kv_cache_bytes,
        "peak_process_bytes": peak_rss_bytes(),
    }
