"""Measure another program at one of our shapes and print the rows; run by benchmarks/h200.py.

    python benchmarks/peers/generate.py --peer transformers --shape cpm2-11b
    python benchmarks/peers/generate.py --peer transformers --shape eva --prompt-tokens 64,512
    python benchmarks/peers/generate.py --peer accelerate --shape llama-8b --gpu-memory 6GiB

``transformers`` is its eager `generate` with everything on one device, bfloat16; ``accelerate`` is
the same model with what does not fit into --gpu-memory offloaded to main memory. Weights are
random. transformers ties the head of T5 shapes to the embedding: a step reads as much as untied.
"""

import argparse
import datetime
import json
import resource
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers

from martlet.bench.limits import step_weight_bytes
from martlet.bench.measure_shape import PROTOCOLS, default_protocol, workload_of
from martlet.bench.passes import Workload
from martlet.bench.record import Record, checkout_commit
from martlet.bench.shapes import Shape, find_shape
from martlet.device.gpu_memory import GpuMemoryWatch, nvml_reader
from martlet.device.probe import probe_cpu
from martlet.device.size import parse_bytes
from martlet.models.config import load_architecture

_DTYPE = torch.bfloat16
# Tensors that a decode step does not read: made once a text, and moved once a text.
_ONCE = (".EncDecAttention.k.", ".EncDecAttention.v.")


def main(arguments: list[str]) -> None:
    """Measure, print a row as JSON for each length of the prompt."""
    options = _parse(arguments)
    shape = find_shape(options.shape)
    protocol = options.protocol or default_protocol(shape)
    reader = nvml_reader() if options.device == "cuda" else None
    with GpuMemoryWatch(reader) as watch, torch.no_grad():
        start = time.perf_counter()
        if options.peer == "transformers":
            model, streamed_bytes = _model_on(shape, options.device), 0
        else:
            model, streamed_bytes = _offloaded_model(shape, parse_bytes(options.gpu_memory))
        load_seconds = time.perf_counter() - start
        records = []
        for prompt_tokens in options.prompt_tokens:
            workload = workload_of(
                protocol, prompt_tokens, options.max_tokens, options.repetitions, options.batch
            )
            times = _times(model, workload, options.device)
            record = _record(arguments, shape, workload, times, model.config.is_encoder_decoder)
            records.append(
                replace(
                    record,
                    load_seconds=load_seconds,
                    streamed_bytes_per_token=streamed_bytes,
                    peak_gpu_process_bytes=watch.peak_bytes if options.device == "cuda" else None,
                )
            )
    print(json.dumps([asdict(record) for record in records], ensure_ascii=False))


def _record(
    arguments: list[str],
    shape: Shape,
    workload: Workload,
    times: dict[str, float],
    has_encoder: bool,
) -> Record:
    """The row of a workload, but for what loading took and moved."""
    options = _parse(arguments)
    first_token_seconds = times["first_token"]
    return Record(
        shape=shape.name,
        quantize=str(_DTYPE).removeprefix("torch."),
        device=_device_name(options.device),
        torch=torch.__version__,
        commit=checkout_commit(Path(__file__).parents[2] / "src/martlet"),
        command=shlex.join(["python", "benchmarks/peers/generate.py", *arguments]),
        gpu_memory_budget_bytes=options.gpu_memory and parse_bytes(options.gpu_memory),
        decode_tokens_per_second=workload.batch / times["step"],
        prefill_tokens_per_second=workload.batch * workload.prompt_tokens / first_token_seconds,
        weight_bytes_per_token=step_weight_bytes(
            load_architecture(shape.config), "none", _DTYPE.itemsize
        ),
        copy_ceiling_bytes_per_second=None,
        pcie_bytes_per_second=None,
        streamed_bytes_per_token=0,
        share_of_limit=None,
        peak_process_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        peer=options.peer,
        time_to_first_token_seconds=first_token_seconds,
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        repetitions=workload.repetitions,
        num_threads=torch.get_num_threads(),
        decode_threads=torch.get_num_threads(),
        load_seconds=0.0,
        date=datetime.date.today().isoformat(),
        protocol=options.protocol or default_protocol(shape),
        batch=workload.batch,
        peer_version=version(options.peer),
        encode_seconds=times["encode"] if has_encoder else None,
        prefill_seconds=first_token_seconds - times["encode"],
        peak_gpu_process_bytes=None,
    )


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=["transformers", "accelerate"], required=True)
    parser.add_argument("--shape", required=True)
    parser.add_argument("--gpu-memory", help="for accelerate: weights on the GPU at most")
    parser.add_argument("--protocol", choices=list(PROTOCOLS))
    parser.add_argument("--prompt-tokens", type=_lengths, default=[None])
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    options = parser.parse_args(arguments)
    if (options.peer == "accelerate") != (options.gpu_memory is not None):
        parser.error("--gpu-memory is for accelerate, and accelerate needs it")
    return options


def _lengths(text: str) -> list[int]:
    return [int(length) for length in text.split(",")]


def _new_model(shape: Shape, device: str) -> Any:
    fields = dict(shape.config)
    config = transformers.AutoConfig.for_model(fields.pop("model_type"), **fields)
    kind = (
        transformers.AutoModelForSeq2SeqLM
        if config.is_encoder_decoder
        else transformers.AutoModelForCausalLM
    )
    with torch.device(device):
        return kind.from_config(config, dtype=_DTYPE).eval()


def _model_on(shape: Shape, device: str) -> Any:
    # On a GPU the usual initialisation of 11 B parameters takes less than a second.
    return _new_model(shape, device)


def _offloaded_model(shape: Shape, gpu_bytes: int) -> tuple[Any, int]:
    """The model with a part of it in main memory; and the bytes that each step brings over."""
    from accelerate import dispatch_model, infer_auto_device_map

    model = _host_model(shape)
    device_map = infer_auto_device_map(
        model,
        max_memory={0: gpu_bytes, "cpu": 1 << 50},
        no_split_module_classes=list(model._no_split_modules),
    )
    streamed_bytes = _streamed_bytes(model, device_map)
    return dispatch_model(model, device_map), streamed_bytes


def _host_model(shape: Shape) -> Any:
    """Random weights in main memory, copied from one page of them: the usual way takes minutes."""
    model = _new_model(shape, "meta").to_empty(device="cpu")
    model.tie_weights()
    page = torch.empty(16 << 20).normal_(0, 0.02).to(_DTYPE)
    for parameter in model.parameters():
        for piece in parameter.detach().view(-1).split(page.numel()):
            piece.copy_(page[: piece.numel()])
    for module in model.modules():
        # Frequencies of rotary positions are computed when a model is made, which meta did not.
        if hasattr(module, "inv_freq"):
            for name, frequencies in type(module)(model.config).named_buffers():
                setattr(module, name, frequencies)
    return model


def _streamed_bytes(model: Any, device_map: dict[str, Any]) -> int:
    """Bytes of parameters of decode steps that stand in main memory, each counted once."""
    away = tuple(f"{name}." for name, where in device_map.items() if where == "cpu")
    return sum(
        parameter.nbytes
        for name, parameter in model.named_parameters()
        if f"{name}.".startswith(away)
        and not name.startswith("encoder.")
        and not any(part in name for part in _ONCE)
    )


def _times(model: Any, workload: Workload, device: str) -> dict[str, float]:
    """Medians: seconds of the encoder, until the first token, and of one decode step."""
    size = workload.batch * workload.prompt_tokens
    ids = torch.arange(1, size + 1) * 7919 % model.config.vocab_size
    ids = ids.view(workload.batch, workload.prompt_tokens).to(device)

    def generate(num_tokens: int) -> Any:
        options = {"decoder_start_token_id": 1} if model.config.is_encoder_decoder else {}
        return model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=num_tokens,
            max_new_tokens=num_tokens,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
            **options,
        )

    runs: dict[str, list[float]] = {"encode": [], "first_token": [], "step": []}
    for number in range(workload.repetitions + 1):
        encode = 0.0
        if model.config.is_encoder_decoder:
            encode = _seconds(lambda: model.get_encoder()(ids), device)
        first = _seconds(lambda: generate(1), device)
        # The run that does not count only has to load and allocate what the others use.
        num_tokens = workload.output_tokens if number else min(8, workload.output_tokens)
        whole = _seconds(lambda num_tokens=num_tokens: generate(num_tokens), device)
        if number:
            runs["encode"].append(encode)
            runs["first_token"].append(first)
            runs["step"].append((whole - first) / (num_tokens - 1))
    return {name: statistics.median(seconds) for name, seconds in runs.items()}


def _seconds(work: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else probe_cpu().name


if __name__ == "__main__":
    main(sys.argv[1:])
