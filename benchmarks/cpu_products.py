"""Products with integer weights on a processor, against torch's operations and memory's own speed.

    python benchmarks/cpu_products.py --out benchmarks/results/cpu-products.json

Every kind of product runs once a round, the plain reading of memory too, and the best round of
each counts: other work on the machine then slows all alike, or none. With one thread the clock is
that of the thread, which stands while others have the core. The share is that of the
weight's bytes over the time, of the read ceiling; the error is that of a product against float64
with the same integers.
"""

import argparse
import datetime
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import martlet
from martlet.bench.record import checkout_commit
from martlet.device.probe import probe_cpu
from martlet.kernels import ops, tiled
from martlet.kernels.cpu.grouped_linear import describe_kernel
from martlet.quantization.formats import INT8, parse_format
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

FORMATS = ("int4-g32", "int4-g64", "int4-g128", "int4-g128-asym", "int8-g32")
READ_BYTES = 512 << 20
Clock = Callable[[], float]


@dataclass
class Contender:
    """A kind of product, the bytes that it reads of the weight, and its best time so far."""

    name: str
    weight_bytes: int
    work: Callable[[Tensor], Tensor]
    exact: Tensor  # the weight in float32
    seconds: float = float("inf")


def main() -> None:
    """Measure every kind of product."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--shape", type=int, nargs=2, default=(16384, 4096), metavar=("OUT", "IN"))
    parser.add_argument("--rows", type=int, nargs="+", default=(1, 2, 4, 8, 16))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(f"int4: {describe_kernel()}; {options.threads} threads", flush=True)
    contenders = list_contenders(*options.shape)
    memory = torch.ones(READ_BYTES // 16384, 4096)
    clock = time.thread_time if options.threads == 1 else time.perf_counter
    ceiling, measured = 0.0, []
    for rows in options.rows:
        x = torch.randn(rows, options.shape[1])
        for contender in contenders:
            contender.work(x)
            contender.seconds = float("inf")
        for _ in range(options.rounds):
            ceiling = max(ceiling, memory.nbytes / seconds_to_read(memory, clock))
            race(contenders, x, clock)
        measured += [(rows, c.name, c.seconds, c.weight_bytes, error(c, x)) for c in contenders]
    table = []
    for rows, name, seconds, num_bytes, relative_error in measured:
        share = num_bytes / seconds / ceiling
        print(
            f"{rows:>2} rows {name:<28} {1e3 * seconds:7.2f} ms {share:6.1%} of reading, "
            f"error {relative_error:.1e}"
        )
        table.append(
            {
                "rows": rows,
                "kind": name,
                "seconds": seconds,
                "weight_bytes": num_bytes,
                "share_of_limit": share,
                "relative_error": relative_error,
            }
        )
    if options.out:
        record = {
            "device": probe_cpu().name,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "threads": options.threads,
            "torch": torch.__version__,
            "commit": checkout_commit(Path(martlet.__file__).parent),
            "command": "python " + " ".join(sys.argv),
            "date": datetime.date.today().isoformat(),
            "shape": list(options.shape),
            "int4_on_cpu": describe_kernel(),
            "read_ceiling_bytes_per_second": ceiling,
            "rows": table,
        }
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def race(contenders: list[Contender], x: Tensor, clock: Clock) -> None:
    """One round; the best time of each stays in its ``seconds``."""
    for contender in contenders:
        seconds = timed(lambda c=contender: c.work(x), clock)
        contender.seconds = min(contender.seconds, seconds)


def seconds_to_read(memory: Tensor, clock: Clock) -> float:
    """By whichever of two plain ways is faster."""
    vector = torch.ones(memory.shape[1])
    return min(timed(memory.sum, clock), timed(lambda: memory.mv(vector), clock))


def timed(work: Callable[[], object], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start


def error(contender: Contender, x: Tensor) -> float:
    rows = slice(0, 512)
    exact = x.double() @ contender.exact[rows].double().t()
    return float((contender.work(x)[:, rows].double() - exact).norm() / exact.norm())


def list_contenders(out_features: int, in_features: int) -> list[Contender]:
    found = []
    for name in FORMATS:
        weight = random_weight(out_features, in_features, name)
        dense = weight.rows(0, 512).dequantize()
        found.append(Contender(name, weight.nbytes, lambda x, w=weight: ops.linear(x, w), dense))
        if name == "int4-g32":
            work = float_tiles(weight)
            found.append(Contender("int4-g32, float tiles", weight.nbytes, work, dense))
            found.append(torch_int4(weight, dense))
    data = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
    int8 = QuantizedTensor(data, torch.full((out_features,), 1e-3))
    dense = int8.rows(0, 512).dequantize()
    work = lambda x: ops.linear(x, int8)  # noqa: E731
    found.append(Contender(f"{INT8.name}, a scale a row", int8.nbytes, work, dense))
    float32 = torch.randn(out_features, in_features)
    work = lambda x: ops.linear(x, float32)  # noqa: E731
    found.append(Contender("float32", float32.nbytes, work, float32[:512]))
    return found


def random_weight(out_features: int, in_features: int, name: str) -> GroupedTensor:
    format = parse_format(name)
    num_groups = in_features // format.group_size
    if format.bits == 4:
        data = torch.randint(0, 256, (out_features, in_features // 2), dtype=torch.uint8)
    else:
        data = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8)
    scale = torch.rand(out_features, num_groups).add(0.5).half()
    zero = torch.randint(0, 16, scale.shape).half() if format.has_zeros else None
    row_scale = torch.full((out_features,), 2.0**-10)
    shape = torch.Size((out_features, in_features))
    return GroupedTensor(data, scale, row_scale, shape, format, zero)


def float_tiles(weight: GroupedTensor) -> Callable[[Tensor], Tensor]:
    """What computes where there is no native code."""
    return lambda x: tiled.linear(x, weight)


def torch_int4(weight: GroupedTensor, dense: Tensor) -> Contender:
    """Torch's own operation: the weight packed anew, bfloat16 activations, scales and zeros."""
    integers = weight.integers().to(torch.int32)
    packed = torch._convert_weight_to_int4pack_for_cpu(integers, 1)
    scale = (weight.scale.float() * weight.row_scale[:, None]).t().to(torch.bfloat16)
    scales_and_zeros = torch.stack((scale, torch.zeros_like(scale)), dim=-1).contiguous()
    group_size = weight.format.group_size

    def work(x: Tensor) -> Tensor:
        rows = x.to(torch.bfloat16)
        product = torch._weight_int4pack_mm_for_cpu(rows, packed, group_size, scales_and_zeros)
        return product.to(x.dtype)

    num_bytes = packed.nbytes + scales_and_zeros.nbytes
    return Contender("int4-g32, torch's operation", num_bytes, work, dense)


if __name__ == "__main__":
    main()
