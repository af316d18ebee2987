"""Times `martlet quantize` at the size of a published model, with random weights and tokens.

    python benchmarks/quantize_shape.py --shape cpm2-11b --gpu-memory 6GiB --ram 16GiB \
        --blocks 2 [--method gptq] [--out FILE]

Blocks are alike, so a model of the same widths with so many blocks a stack tells seconds for a
block and the peak of memory. What comes out is thrown away. Prints a row of JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from functools import partial
from pathlib import Path

import torch

import martlet
from martlet.api.compressing_place import Limits, choose_place
from martlet.bench.random_source import RandomSource
from martlet.bench.record import checkout_commit
from martlet.bench.shapes import find_shape
from martlet.compression.compress_block import Method
from martlet.compression.compressor import Compressor
from martlet.compression.recipe import Recipe, bits_per_weight
from martlet.compression.walk import Sample
from martlet.engine.machine import compute_dtype
from martlet.models.architecture import FIXED, Architecture
from martlet.models.config import load_architecture

_DEPTHS = ("num_layers", "num_decoder_layers", "num_hidden_layers", "n_layer")


def samples_of(architecture: Architecture, num_samples: int, tokens: int) -> list[Sample]:
    random = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        drawn = torch.randint(0, architecture.vocab_size, (count,), generator=random)
        return tuple(drawn.tolist())

    if not architecture.has_encoder:
        return [Sample(ids(tokens)) for _ in range(num_samples)]
    # As in texts: the decoder writes half of what the encoder reads.
    return [Sample(ids(tokens // 2), ids(tokens)) for _ in range(num_samples)]


def measure(arguments: argparse.Namespace) -> dict[str, object]:
    shape = find_shape(arguments.shape)
    config = dict(shape.config)
    if arguments.blocks:
        config |= {name: arguments.blocks for name in _DEPTHS if name in config}
    architecture = load_architecture(config)
    samples = samples_of(architecture, arguments.samples, arguments.sample_tokens)
    method = Method(arguments.method)
    limits = Limits(arguments.gpu_memory, arguments.ram, arguments.device)
    dtype_on = partial(compute_dtype, shape.family)
    place = choose_place(architecture, dtype_on, samples, method, limits)
    source = RandomSource(architecture, "none", torch.float16)
    planned, seconds, errors = [], {}, {}
    started = time.perf_counter()
    with place.held() as placement:
        compressor = Compressor(
            architecture, source, Recipe.parse(arguments.format), method, samples, placement
        )
        for block in compressor.blocks():
            planned += block.planned.weights
            seconds[block.spec.name], errors[block.spec.name] = block.seconds, block.output_error
            print(f"{block.spec.name}: {block.seconds:.1f} s", file=sys.stderr, flush=True)
        peak_gpu_bytes = place.peak_gpu_bytes()
    layers = [value for name, value in seconds.items() if name != FIXED]
    return {
        "shape": shape.name,
        "method": method.name,
        "format": arguments.format,
        "bits_per_weight": bits_per_weight(planned),
        "parameters": sum(weight.numel for weight in planned),
        "blocks": len(layers),
        "samples": arguments.samples,
        "sample_tokens": arguments.sample_tokens,
        "device": torch.cuda.get_device_name() if place.device.type == "cuda" else "cpu",
        "dtype": str(place.dtype).removeprefix("torch."),
        "gpu_memory": arguments.gpu_memory,
        "ram": arguments.ram,
        "seconds": time.perf_counter() - started,
        "seconds_per_block": sum(layers) / len(layers),
        "seconds_of_blocks": seconds,
        "output_errors": errors,
        "peak_gpu_process_bytes": peak_gpu_bytes,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "torch": torch.__version__,
        "commit": checkout_commit(Path(martlet.__file__).parent),
        "command": "python " + " ".join(sys.argv),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="cpm2-11b")
    parser.add_argument("--method", default="gptq")
    parser.add_argument("--format", default="int4-g64")
    parser.add_argument("--blocks", type=int, default=1, help="blocks a stack; 0 for all")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--sample-tokens", type=int, default=512)
    parser.add_argument("--gpu-memory")
    parser.add_argument("--ram")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    row = measure(arguments)
    print(json.dumps(row), flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps([row], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
