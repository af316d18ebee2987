"""The products of a decode step of CPM-2's shape, captured in one graph, against the copy ceiling.

Run on a machine with a GPU: python benchmarks/products.py [--output FILE]
"""

import argparse
import json
import statistics
import sys
import time

import torch

from martlet.bench.record import checkout_commit
from martlet.kernels import ops
from martlet.kernels.cuda import driver, few_rows
from martlet.kernels.norm import Norm
from martlet.quantization.scheme import TiledTensor

HIDDEN, INNER, LAYERS = 4096, 10240, 24


def _weight(out_features, in_features, generator):
    data = torch.empty(out_features * in_features, dtype=torch.uint8, device="cuda")
    data.random_(1, 256, generator=generator)
    scale = torch.full((out_features,), 1 / (73 * in_features**0.5), device="cuda")
    return TiledTensor(data, scale, torch.Size((out_features, in_features)))


def _layer(generator):
    sizes = {"qkv": [(HIDDEN, HIDDEN)] * 3, "o": [(HIDDEN, HIDDEN)], "cq": [(HIDDEN, HIDDEN)]}
    sizes |= {"co": [(HIDDEN, HIDDEN)], "wi": [(INNER, HIDDEN)] * 2, "wo": [(HIDDEN, INNER)]}
    return {name: [_weight(*s, generator) for s in shapes] for name, shapes in sizes.items()}


def _run(layers, hidden, norm):
    for layer in layers:
        ops.linears(hidden, layer["qkv"], [None] * 3, norm=norm)
        hidden = ops.linear(hidden, layer["o"][0], residual=hidden)
        q = ops.linear(hidden, layer["cq"][0], norm=norm)
        hidden = ops.linear(q, layer["co"][0], residual=hidden)
        inner = ops.gated_linear(hidden, *layer["wi"], "gelu_new", norm=norm)
        hidden = ops.linear(inner, layer["wo"][0], residual=hidden)
    return hidden


def _seconds(graph, repetitions=15):
    times = []
    for _ in range(repetitions + 3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def measure(layers, rows, dtype):
    """Seconds of one pass over all layers."""
    generator = torch.Generator("cuda").manual_seed(1)
    hidden = torch.randn(rows, HIDDEN, device="cuda", generator=generator).to(dtype)
    norm = Norm(torch.ones(HIDDEN, device="cuda", dtype=dtype), None, 1e-6)
    _run(layers, hidden, norm)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _run(layers, hidden, norm)
    return _seconds(graph)


def measure_gpu_copy_bandwidth(device):
    source = torch.empty(2 << 30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(8):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return 2 * source.numel() / statistics.median(times)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--output")
    parser.add_argument("--kinds", action="store_true")
    options = parser.parse_args()
    generator = torch.Generator("cuda").manual_seed(0)
    layers = [_layer(generator) for _ in range(LAYERS)]
    nbytes = sum(w.data.numel() for layer in layers for ws in layer.values() for w in ws)
    ceiling = measure_gpu_copy_bandwidth(torch.device("cuda"))
    print(f"{nbytes / 1e9:.2f} GB of weights, copy ceiling {ceiling / 1e9:.0f} GB/s", flush=True)
    results = []

    def show(label, rows, dtype=torch.float16):
        try:
            seconds = measure(layers, rows, dtype)
        except Exception as error:  # noqa: BLE001 - one variant must not end the others
            print(f"{label}: {error}", flush=True)
            return
        share = nbytes / seconds / ceiling
        print(
            f"{label}: {seconds * 1e3:.3f} ms, {nbytes / seconds / 1e9:.0f} GB/s, {share:.3f}",
            flush=True,
        )
        results.append(
            {"variant": label, "rows": rows, "seconds": seconds, "share_of_limit": share}
        )

    for rows in (1, 2, 4, 8, 16):
        show(f"fp16 rows {rows}", rows)
    show("bf16 rows 1", 1, torch.bfloat16)
    few_rows.matrix_units_off = True
    for rows in (1, 4):
        show(f"dp4a rows {rows}", rows)
    few_rows.matrix_units_off = False
    if options.kinds:
        norm = Norm(torch.ones(HIDDEN, device="cuda", dtype=torch.float16), None, 1e-6)
        for overlap in (True, False):
            for with_norm in (True, False) if overlap else (False,):
                for kind, size in (("qkv", HIDDEN), ("o", HIDDEN), ("wi", HIDDEN), ("wo", INNER)):
                    x = torch.randn(1, size, device="cuda").half()
                    n = norm if with_norm and size == HIDDEN else None

                    def chain():
                        for layer in layers:
                            ws = layer[kind]
                            if not overlap:
                                driver.break_launch_chain()
                            if kind == "wi":
                                ops.gated_linear(x, *ws, "gelu_new", norm=n)
                            else:
                                ops.linears(x, ws, [None] * len(ws), norm=n)

                    chain()
                    torch.cuda.synchronize()
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        chain()
                    us = _seconds(graph) / LAYERS * 1e6
                    size_bytes = sum(w.data.numel() for w in layers[0][kind])
                    print(
                        f"overlap {overlap} norm {with_norm} {kind}: {us:.2f} us, {size_bytes / us / 1e3:.0f} GB/s",
                        flush=True,
                    )
    if options.output:
        from pathlib import Path
        import martlet

        record = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "commit": checkout_commit(Path(martlet.__file__).parent),
            "command": " ".join(sys.argv),
            "copy_ceiling_bytes_per_second": ceiling,
            "weight_bytes": nbytes,
            "date": time.strftime("%Y-%m-%d"),
            "rows": results,
        }
        Path(options.output).write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
