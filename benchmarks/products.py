"""The products of a decode step of CPM-2's shape, captured in one graph, against the copy ceiling.

    python benchmarks/products.py --out benchmarks/results/products.json

Needs a GPU. Each row of the table is a number of rows of activations, a format of the weights and a
kind of product: float16 on the matrix units, or int8 activations with dp4a as on cards without
them; the error is that of a single product against float64 with the same weights.
"""

import argparse
import datetime
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import martlet
from martlet.bench.record import checkout_commit
from martlet.device.bandwidth import measure_gpu_copy_bandwidth
from martlet.kernels import ops
from martlet.kernels.cuda import few_rows
from martlet.kernels.norm import Norm
from martlet.memory.layout import PartLayout, TensorForm, lay_out_part, view_part
from martlet.quantization.formats import INT8, WeightFormat, parse_format
from martlet.quantization.scheme import TiledTensor

HIDDEN, INNER, LAYERS = 4096, 10240, 24
SHAPES = {
    "qkv": [(HIDDEN, HIDDEN)] * 3,
    "o": [(HIDDEN, HIDDEN)],
    "cross_q": [(HIDDEN, HIDDEN)],
    "cross_o": [(HIDDEN, HIDDEN)],
    "gate_up": [(INNER, HIDDEN)] * 2,
    "down": [(HIDDEN, INNER)],
}
Layer = dict[str, list[TiledTensor]]


def main() -> None:
    """Measure every kind of product."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--several-from",
        type=int,
        default=few_rows.SEVERAL_FROM_ROWS,
        help="rows from which the kernel for several rows is used; 17 is never",
    )
    parser.add_argument("--commit", help="recorded where the sources are in no git checkout")
    parser.add_argument("--formats", default="int8,int4-g32,int4-g128", help="of the weights")
    options = parser.parse_args()
    few_rows.SEVERAL_FROM_ROWS = options.several_from
    device = torch.device("cuda")
    ceiling = measure_gpu_copy_bandwidth(device, 2 << 30)
    print(f"copy ceiling {ceiling / 1e9:.0f} GB/s", flush=True)
    measured: list[dict[str, object]] = []
    for name in options.formats.split(","):
        format = parse_format(name)
        assert format is not None, name
        measured += _measure(format, ceiling)
    if options.out:
        record = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "commit": options.commit or checkout_commit(Path(martlet.__file__).parent),
            "command": "python " + " ".join(sys.argv),
            "date": datetime.date.today().isoformat(),
            "copy_ceiling_bytes_per_second": ceiling,
            "rows": measured,
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _measure(format: WeightFormat, ceiling: float) -> list[dict[str, object]]:
    """Every kind of product with weights of a format."""
    layers = _layers(format)
    num_bytes = sum(w.nbytes for layer in layers for ws in layer.values() for w in ws)
    print(f"{format.name}: {num_bytes / 1e9:.2f} GB of weights and scales", flush=True)
    measured: list[dict[str, object]] = []
    for kind, dtype, rows in (
        *(("matrix units", torch.float16, rows) for rows in (1, 2, 4, 8, 16)),
        ("matrix units", torch.bfloat16, 1),
        *(("dp4a", torch.float16, rows) for rows in (1, 4)),
    ):
        few_rows.matrix_units_off = kind == "dp4a"
        seconds, error = _seconds(layers, rows, dtype), _error(rows, dtype, format)
        share = num_bytes / seconds / ceiling
        name = f"{kind}, {str(dtype).removeprefix('torch.')}, {rows} rows"
        print(f"  {name:<32} {1e3 * seconds:6.3f} ms {share:6.1%} error {error:.1e}", flush=True)
        measured.append(
            {
                "format": format.name,
                "weight_bytes": num_bytes,
                "kind": name,
                "seconds": seconds,
                "share_of_limit": share,
                "relative_error": error,
            }
        )
    return measured


def _weight(out_features: int, in_features: int, format: WeightFormat) -> TiledTensor:
    forms = [TensorForm("weight", (out_features, in_features), format)]
    part = lay_out_part("weight", "weight", forms, torch.float16)
    return _filled(part, torch.empty(part.nbytes, dtype=torch.uint8, device="cuda"))["weight"]


def _filled(part: PartLayout, memory: torch.Tensor) -> dict[str, TiledTensor]:
    """Random weights in the order in which a model's part holds them."""
    weights: dict[str, TiledTensor] = {}
    for name, weight in view_part(part, memory).items():
        assert isinstance(weight, TiledTensor)
        weight.data.random_(1, 256)
        deviation = 73.3 if weight.format.bits == 8 else 4.6  # of uniform integers
        weight.scale.fill_(1 / (deviation * weight.shape[1] ** 0.5))
        if weight.groups is not None:
            weight.groups.copy_(torch.rand(weight.groups.shape, device="cuda") + 0.5)
            if weight.format.has_zeros:
                weight.groups[1::2] += 7
        weights[name] = weight
    return weights


def _layers(format: WeightFormat) -> list[Layer]:
    """All layers in one stretch of memory, as a model has them."""
    forms = [
        TensorForm(f"{name} {i}", shape, format)
        for name, shapes in SHAPES.items()
        for i, shape in enumerate(shapes)
    ]
    part = lay_out_part("layer", "layer", forms, torch.float16)
    memory = torch.empty(LAYERS * part.nbytes, dtype=torch.uint8, device="cuda")
    layers: list[Layer] = []
    for piece in memory.split(part.nbytes):
        weights = _filled(part, piece)
        layers.append(
            {name: [weights[f"{name} {i}"] for i in range(len(s))] for name, s in SHAPES.items()}
        )
    return layers


def _pass(layers: list[Layer], hidden: torch.Tensor, norm: Norm) -> None:
    """The chain of a step without attention: every product waits for the one before."""
    for layer in layers:
        ops.linears(hidden, layer["qkv"], [None] * 3, norm=norm)
        hidden = ops.linear(hidden, layer["o"][0], residual=hidden)
        query = ops.linear(hidden, layer["cross_q"][0], norm=norm)
        hidden = ops.linear(query, layer["cross_o"][0], residual=hidden)
        inner = ops.gated_linear(hidden, *layer["gate_up"], "gelu_new", norm=norm)
        hidden = ops.linear(inner, layer["down"][0], residual=hidden)


def _seconds(layers: list[Layer], rows: int, dtype: torch.dtype) -> float:
    hidden = torch.randn(rows, HIDDEN, device="cuda").to(dtype)
    norm = Norm(torch.ones(HIDDEN, device="cuda", dtype=dtype), None, 1e-6)
    _pass(layers, hidden, norm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _pass(layers, hidden, norm)
    return _median_seconds(graph.replay)


def _median_seconds(work: Callable[[], None]) -> float:
    times = []
    for _ in range(18):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


def _error(rows: int, dtype: torch.dtype, format: WeightFormat = INT8) -> float:
    weight = _weight(INNER, HIDDEN, format)
    x = torch.randn(rows, HIDDEN, device="cuda").to(dtype)
    exact = x.double() @ weight.dequantize(torch.float64).T
    return float((ops.linear(x, weight).double() - exact).norm() / exact.norm())


if __name__ == "__main__":
    main()
