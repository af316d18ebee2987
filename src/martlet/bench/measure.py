"""Speed of prefill and decode, against the speed at which the machine reads its memory.

A decode step reads every weight of the decoder once and computes little with each, so it cannot
be faster than memory; ``share_of_limit`` says how near it comes.
"""

from __future__ import annotations

import datetime
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from martlet.api import load
from martlet.bench.record import Record, checkout_commit
from martlet.device.probe import measure_ram_bandwidth, peak_rss_bytes, probe_cpu
from martlet.engine.generator import Generator
from martlet.engine.load_options import LoadOptions
from martlet.engine.request import (
    Context,
    Finished,
    Request,
    SamplingParams,
    Stats,
    Suppress,
)
from martlet.errors import UsageError
from martlet.memory.executor import Executor
from martlet.models.architecture import output_matrix_of
from martlet.quantization.scheme import (
    GroupedTensor,
    QuantizedTensor,
    TiledTensor,
    Weight,
    weight_nbytes,
)

__all__ = ["Workload", "decode_step_bytes", "measure"]


@dataclass(frozen=True)
class Workload:
    """What is timed: ``output_tokens`` tokens after ``prompt_tokens``, ``repetitions`` times.

    One more run before that is not counted.
    """

    prompt_tokens: int = 128
    output_tokens: int = 64
    repetitions: int = 5


def measure(
    model: str,
    options: LoadOptions,
    workload: Workload,
    command: str,
    progress: Callable[[int, int], None] | None = None,
) -> Record:
    """Load a model and time it; greedy, and past the end of the text, so that lengths are exact.

    ``command`` is what repeats the measurement; ``progress`` is called with (runs done, runs).

    Raises:
        UsageError: prompt and output together do not fit into the model's context.
        MartletError: as ``martlet.load``.
    """
    start = time.perf_counter()
    loaded = load(model, **{f.name: getattr(options, f.name) for f in fields(options)})
    load_seconds = time.perf_counter() - start
    runs = _run_all(loaded.generator, workload, progress)
    executor = loaded.generator.executor
    on_cpu = executor.device.type == "cpu"
    ceiling = measure_ram_bandwidth() if on_cpu else None
    weight_bytes = _weight_bytes_per_token(loaded.generator)
    decode_speed = statistics.median(stats.tokens_per_second for stats in runs)
    first_token_seconds = statistics.median(stats.prefill_seconds for stats in runs)
    return Record(
        shape=model,
        quantize=_form_of(executor),
        device=probe_cpu().name if on_cpu else torch.cuda.get_device_name(executor.device),
        torch=torch.__version__,
        commit=checkout_commit(Path(__file__).parents[1]),
        command=command,
        gpu_memory_budget_bytes=None if options.gpu_memory is None else int(options.gpu_memory),
        decode_tokens_per_second=decode_speed,
        prefill_tokens_per_second=workload.prompt_tokens / first_token_seconds,
        weight_bytes_per_token=weight_bytes,
        copy_ceiling_bytes_per_second=ceiling,
        pcie_bytes_per_second=None,
        streamed_bytes_per_token=0,
        share_of_limit=decode_speed * weight_bytes / ceiling if ceiling else None,
        peak_process_bytes=peak_rss_bytes(),
        peer=None,
        time_to_first_token_seconds=first_token_seconds,
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        repetitions=workload.repetitions,
        num_threads=loaded.plan.num_threads,
        decode_threads=loaded.plan.decode_threads,
        load_seconds=load_seconds,
        date=datetime.date.today().isoformat(),
        kv_cache=loaded.plan.demand.kv_cache,
    )


def decode_step_bytes(
    output_matrix: Weight,
    decoder_blocks: Iterable[Mapping[str, Weight]],
    once: Collection[str] = (),
) -> int:
    """Bytes of weights that one decode step reads: the decoder's layers and the output matrix.

    ``once`` names the tensors of a block that are read once a text instead. Of an embedding table
    one row is read, which is left out, unless it is the output matrix too.
    """
    layers = sum(
        weight_nbytes(weight)
        for weights in decoder_blocks
        for name, weight in weights.items()
        if name not in once
    )
    return layers + weight_nbytes(output_matrix)


def _run_all(
    generator: Generator, workload: Workload, progress: Callable[[int, int], None] | None
) -> list[Stats]:
    request = _request(generator, workload)
    runs = []
    for number in range(workload.repetitions + 1):
        last = deque(generator.generate(request), maxlen=1).pop()
        assert isinstance(last, Finished), "a generation ends with its stats"
        assert last.stats.output_tokens == workload.output_tokens, "a run was cut short"
        if number > 0:
            runs.append(last.stats)
        if progress:
            progress(number + 1, workload.repetitions + 1)
    return runs


def _request(generator: Generator, workload: Workload) -> Request:
    architecture = generator.architecture
    num_tokens = workload.output_tokens
    if not architecture.has_encoder:
        num_tokens += workload.prompt_tokens
    limit = architecture.max_positions
    if limit is not None and num_tokens > limit:
        raise UsageError(
            f"--prompt-tokens {workload.prompt_tokens} and --max-tokens "
            f"{workload.output_tokens} together are more than the model's context of {limit}; "
            "use less"
        )
    # Which tokens they are does not change the speed; these are spread over the vocabulary.
    vocab_size = generator.tokenizer.vocab_size
    prompt_ids = tuple(7919 * i % vocab_size for i in range(1, workload.prompt_tokens + 1))
    context = Context((0,), prompt_ids) if architecture.has_encoder else Context(prompt_ids)
    return Request(
        context=context,
        params=SamplingParams(max_tokens=workload.output_tokens, temperature=0),
        constraint=Suppress(torch.zeros(architecture.vocab_size, dtype=torch.bool)),
        eos_ids=frozenset(),
        prompt_ids=prompt_ids,
    )


def _weight_bytes_per_token(generator: Generator) -> int:
    executor = generator.executor
    blocks = (weights for _, weights in executor.blocks("decode"))
    specs = generator.architecture.block_specs()
    once = {tensor.name for block in specs for tensor in block.tensors if tensor.once}
    head = executor.fixed()[output_matrix_of(generator.architecture).name]
    return decode_step_bytes(head, blocks, once)


def _form_of(executor: Executor) -> str:
    """The form of most of the matrices: the name of their format, or the float type."""
    num_weights: Counter[str] = Counter()
    for _, block in executor.blocks("decode"):
        for weight in block.values():
            if isinstance(weight, Tensor):
                num_weights[str(executor.dtype).removeprefix("torch.")] += weight.numel()
            elif isinstance(weight, QuantizedTensor | GroupedTensor | TiledTensor):
                num_weights[weight.format.name] += weight.shape.numel()
    return num_weights.most_common(1)[0][0]
