"""Check and time products of many rows with tiled int8 weights on a GPU.

`python benchmarks/gemm.py` compares every route with float64 and prints TFLOP/s beside those of
torch on float weights. Weights rotate through more memory than the level 2 cache holds. A variant
that fails prints its error, and the rest goes on.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from martlet.kernels import ops
from martlet.kernels.cuda import many_rows, panels
from martlet.kernels.cuda.few_rows import Epilogue
from martlet.kernels.cuda.gemm_route import Dequantized, FromTiles, Route, Size, choose_route
from martlet.kernels.norm import Norm
from martlet.quantization.packing import pack_tiles, padded_shape
from martlet.quantization.scheme import TiledTensor

CHECKED_SHAPES = ((40, 96), (4096, 4096), (20480, 2560), (26240, 4096), (4096, 10240))
CHECKED_TOKENS = (17, 33, 100, 256, 300, 512)
TIMED_SHAPES = ((4096, 4096), (12288, 4096), (20480, 4096), (4096, 10240))
TIMED_TOKENS = (256, 512)
# One rounding of the output; weights rounded to the type add theirs. float32: matrix units cut off
# their sums, of which there are 1280 at two parts x 10240 inputs.
LIMITS = {torch.float16: 1e-3, torch.bfloat16: 6e-3, torch.float32: 1e-4}
ROTATED_BYTES = 400 << 20

Result = TypeVar("Result")


def main() -> None:
    """Check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-check", action="store_true")
    parser.add_argument("--no-time", action="store_true")
    arguments = parser.parse_args()
    start = time.perf_counter()
    # The comparison is with full float32 sums, and the float32 route is to be float32.
    torch.backends.cuda.matmul.allow_tf32 = False
    properties = torch.cuda.get_device_properties(0)
    print(f"{properties.name}, torch {torch.__version__}, {properties.multi_processor_count} SMs")
    if not arguments.no_check:
        check()
        print(f"-- {time.perf_counter() - start:.0f} s")
    if not arguments.no_time:
        time_copies()
        time_layers()
        for out_features, in_features in TIMED_SHAPES:
            time_shape(out_features, in_features)
    print(f"-- {time.perf_counter() - start:.0f} s")


def random_weight(out_features: int, in_features: int) -> tuple[Tensor, TiledTensor]:
    """(int8 matrix, the same in tiles with random scales)."""
    data = torch.randint(-127, 128, (out_features, in_features), dtype=torch.int8, device="cuda")
    padded, _ = padded_shape(out_features, in_features)
    scale = torch.rand(padded, device="cuda") * 1e-3 + 1e-4
    return data, TiledTensor(pack_tiles(data), scale, torch.Size((out_features, in_features)))


def all_routes(is_gated: bool = False) -> Iterator[Route]:
    """Those of this card that are worth a check."""
    yield Dequantized()
    capability = torch.cuda.get_device_capability()
    splits = (1,) if is_gated else (1, 2)
    if capability >= (8, 0):
        for tokens in (32, 64, 128):
            yield from (FromTiles(tokens, 0, number) for number in splits)
    if capability == (9, 0):
        for groups in (2, 3, 4):
            for tokens in (64, 128):
                yield from (FromTiles(tokens, groups, number) for number in splits)


def some_routes() -> list[Route]:
    """For the other types, which differ in what is packed and in what is stored."""
    return [
        route
        for route in all_routes()
        if isinstance(route, Dequantized)
        or (route.tokens, route.groups) in ((128, 0), (128, 4), (64, 2))
    ]


def label(route: Route) -> str:
    """A short name for a table."""
    if isinstance(route, Dequantized):
        panel = route.panel_bytes >> 20
        return f"A {panel} MiB" if panel < 1 << 20 else "A whole"
    kind = f"hopper g{route.groups}" if route.groups else "mma"
    return f"B {kind} t{route.tokens} s{route.splits}"


def check() -> None:
    """Every route at every shape against float64; poisoned memory under the output."""
    worst: dict[tuple[str, str], float] = {}
    for out_features, in_features in CHECKED_SHAPES:
        data, weight = random_weight(out_features, in_features)
        exact_weight = data.double() * weight.scale[:out_features, None].double()
        for dtype in LIMITS:
            attempt(
                f"dequantize {dtype} {data.shape}", lambda d=dtype, w=weight: check_weight(w, d)
            )
        for tokens in CHECKED_TOKENS:
            for dtype, limit in LIMITS.items():
                x = torch.randn(tokens, in_features, device="cuda").to(dtype)
                exact = x.double() @ exact_weight.T
                for route in all_routes() if dtype == torch.float16 else some_routes():
                    if isinstance(route, FromTiles) and route.splits > -(-in_features // 64):
                        continue
                    name = f"{label(route)} {dtype} {tokens} x {out_features} x {in_features}"
                    error = attempt(
                        name, lambda x=x, w=weight, e=exact, r=route: product_error(x, w, e, r)
                    )
                    if error is not None:
                        key = (label(route), str(dtype))
                        worst[key] = max(worst.get(key, 0.0), error)
                        if not error < limit:
                            print(f"WRONG {name}: error {error:.2e}, limit {limit:.0e}")
        del data, weight, exact_weight
    check_epilogues()
    for (name, dtype), error in worst.items():
        print(f"worst error {name:20} {dtype:15} {error:.1e}")


def check_weight(weight: TiledTensor, dtype: torch.dtype) -> None:
    """Bit for bit what the definition gives."""
    out = torch.full(weight.shape, float("nan"), dtype=dtype, device="cuda")
    if not torch.equal(panels.dequantize(weight, out), weight.dequantize(dtype)):
        raise AssertionError("differs from the definition")


def product_error(x: Tensor, weight: TiledTensor, exact: Tensor, route: Route) -> float:
    """Of a product whose output lies where not-a-numbers lay."""
    poison = torch.full(exact.shape, float("nan"), dtype=x.dtype, device="cuda")
    del poison  # the allocator hands the same memory out again
    return relative_error(many_rows.linear(x, [weight], [None], route=route), exact)


def relative_error(ours: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm."""
    return ((ours.double() - exact).norm() / exact.norm()).item()


def check_epilogues() -> None:
    """Bias, activation, residual and the gated form, once a route."""
    (data, weight), (up_data, up) = random_weight(1000, 2560), random_weight(1000, 2560)
    x = torch.randn(100, 2560, device="cuda").half() / 8
    bias, residual = torch.randn(1000, device="cuda").half(), torch.randn(100, 1000).cuda().half()
    plain = x.double() @ (data.double() * weight.scale[:1000, None].double()).T
    other = x.double() @ (up_data.double() * up.scale[:1000, None].double()).T

    def gelu(values: Tensor) -> Tensor:
        return torch.nn.functional.gelu(values, approximate="tanh")

    exact = gelu(plain + bias.double()) + residual.double()
    for route in all_routes():
        epilogue = Epilogue("gelu_new", residual)
        error = attempt(
            f"epilogue {label(route)}",
            lambda r=route, e=epilogue: relative_error(
                many_rows.linear(x, [weight], [bias], e, r), exact
            ),
        )
        if error is not None and not error < 2e-3:
            print(f"WRONG epilogue {label(route)}: error {error:.2e}")
    for route in all_routes(is_gated=True):
        error = attempt(
            f"gated {label(route)}",
            lambda r=route: relative_error(
                many_rows.gated_linear(x, weight, up, "gelu_new", r), gelu(plain) * other
            ),
        )
        if error is not None and not error < 2e-3:
            print(f"WRONG gated {label(route)}: error {error:.2e}")


def attempt(name: str, run: Callable[[], Result]) -> Result | None:
    """What it gives, or its error in print."""
    try:
        result = run()
        torch.cuda.synchronize()
        return result
    except Exception as error:
        print(f"FAILED {name}: {type(error).__name__}: {str(error)[:300]}")
        return None


def median_seconds(runs: list[Callable[[], object]], repeats: int = 5) -> float:
    """Of one call, from graphs that hold all of them in turn."""
    for run in runs[:2]:
        run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for run in runs:
            run()
    graph.replay()
    times = []
    for _ in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize()
        times.append(before.elapsed_time(after) / 1000 / len(runs))
    return statistics.median(times)


def time_copies() -> None:
    """The ceiling of dequantising, and how near it comes: bytes read and written a second."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    seconds = median_seconds([lambda: target.copy_(source)] * 4)
    print(f"copy {2 * source.nbytes / seconds / 1e9:.0f} GB/s")
    weights = [random_weight(20480, 4096)[1] for _ in range(5)]
    for dtype in LIMITS:
        out = torch.empty(20480, 4096, dtype=dtype, device="cuda")
        seconds = attempt(
            f"dequantize {dtype}",
            lambda o=out: median_seconds([lambda w=w: panels.dequantize(w, o) for w in weights]),
        )
        if seconds is not None:
            moved = weights[0].nbytes + out.nbytes
            print(f"dequantize {dtype} {moved / seconds / 1e9:.0f} GB/s")


def time_layers() -> None:
    """An encoder layer of CPM-2 without attention, whole and in parts."""
    shapes = ((4096, 4096),) * 4 + ((10240, 4096),) * 2 + ((4096, 10240),)
    layers = [[random_weight(*shape)[1] for shape in shapes] for _ in range(4)]
    for tokens in TIMED_TOKENS:
        x = torch.randn(tokens, 4096, device="cuda").bfloat16()
        print(f"\nan encoder layer, {tokens} tokens, microseconds")
        for mib in (32, 64, 96, 128, 160):
            time_parts(x, layers, mib)
        time_whole(x, layers)


def time_parts(x: Tensor, layers: list[list[TiledTensor]], mib: int) -> None:
    """Every product with panels of that size."""
    route, wide = Dequantized(mib << 20), x.repeat(1, 3)[:, :10240].contiguous()
    added = Epilogue(None, x)
    parts: dict[str, Callable[[list[TiledTensor]], object]] = {
        "q, k, v": lambda w: many_rows.linear(x, w[:3], [None] * 3, route=route),
        "o": lambda w: many_rows.linear(x, w[3:4], [None], added, route),
        "gated": lambda w: many_rows.gated_linear(x, w[4], w[5], "gelu_new", route),
        "wo": lambda w: many_rows.linear(wide, w[6:], [None], added, route),
    }
    figures = []
    for name, part in parts.items():
        runs = [lambda w=w, p=part: p(w) for w in layers]
        seconds = attempt(f"{name} {mib}", lambda r=runs: median_seconds(r))
        figures.append(f"{name} {'-' if seconds is None else round(1e6 * seconds)}")
    print(f"  panels of {mib:3} MiB: {'   '.join(figures)}")


def time_whole(x: Tensor, layers: list[list[TiledTensor]]) -> None:
    """As a graph, and as Python queues it: where that takes longer, a pass is bound by launches."""
    norm = Norm(torch.ones_like(x[0]), None, 1e-6)

    def run(w: list[TiledTensor]) -> Tensor:
        queries, _, _ = ops.linears(x, w[:3], [None] * 3, norm=norm)
        hidden = ops.linear(queries.contiguous(), w[3], residual=x)
        inner = ops.gated_linear(hidden, w[4], w[5], "gelu_new", norm=norm)
        return ops.linear(inner, w[6], residual=hidden)

    graph_seconds = median_seconds([lambda w=w: run(w) for w in layers])
    torch.cuda.synchronize()
    start = time.perf_counter()
    for number in range(24):
        run(layers[number % len(layers)])
    queued = (time.perf_counter() - start) / 24
    torch.cuda.synchronize()
    whole = (time.perf_counter() - start) / 24
    norm_seconds = median_seconds([lambda: ops.norm(x, norm)] * 8)
    print(
        f"  a layer: {1e6 * graph_seconds:.0f} as a graph, {1e6 * queued:.0f} to queue, "
        f"{1e6 * whole:.0f} queued and run; a norm {1e6 * norm_seconds:.1f}"
    )


def timed_routes(size: Size) -> dict[str, Route]:
    """Panel sizes, kernels of either kind, and the choice."""
    capability = torch.cuda.get_device_capability()
    sizes = [*(mib << 20 for mib in (8, 16, 32, 64)), 1 << 50]
    routes: list[Route] = [Dequantized(panel_bytes) for panel_bytes in sizes]
    if capability >= (8, 0):
        routes += [FromTiles(tokens, 0, number) for tokens in (64, 128) for number in (1, 2)]
    if capability == (9, 0):
        routes += [FromTiles(tokens, groups, 1) for tokens in (64, 128) for groups in (2, 3, 4)]
        routes += [FromTiles(128, 4, 2), FromTiles(128, 2, 2)]
    chosen = choose_route(
        capability, torch.cuda.get_device_properties(0).multi_processor_count, size
    )
    return {label(route): route for route in routes} | {f"chosen: {label(chosen)}": chosen}


def time_shape(out_features: int, in_features: int) -> None:
    """A table for one weight: a line a variant, TFLOP/s by tokens."""
    count = min(24, -(-ROTATED_BYTES // (out_features * in_features)))
    weights = [random_weight(out_features, in_features)[1] for _ in range(count)]
    dense = [torch.randn(out_features, in_features, device="cuda").half() for _ in range(count)]
    dense_bf16 = [weight.bfloat16() for weight in dense]
    rows: dict[str, list[str]] = {}
    for tokens in TIMED_TOKENS:
        x = torch.randn(tokens, in_features, device="cuda").half()
        operations = 2 * tokens * out_features * in_features
        size = Size(tokens, out_features, in_features)
        x_bf16, x_float = x.bfloat16(), x.float()
        variants: dict[str, list[Callable[[], object]]] = {
            "torch float16": [lambda w=w, x=x: x @ w.T for w in dense],
            "torch bfloat16": [lambda w=w, x=x_bf16: x @ w.T for w in dense_bf16],
        }
        inputs = {"chosen, bfloat16": x_bf16, "chosen, float32": x_float}
        routes = {**timed_routes(size), "chosen, bfloat16": None, "chosen, float32": None}
        for name, route in routes.items():
            rows_in = inputs.get(name, x)
            variants[name] = [
                lambda w=w, x=rows_in, r=route: many_rows.linear(x, [w], [None], route=r)
                for w in weights
            ]
        for name, runs in variants.items():
            seconds = attempt(f"{name} {tokens}", lambda r=runs: median_seconds(r))
            figure = "-" if seconds is None else f"{operations / seconds / 1e12:.0f}"
            rows.setdefault(name, []).append(f"{tokens}: {figure}")
    print(f"\n{out_features} x {in_features}, TFLOP/s by tokens")
    for name, figures in rows.items():
        print(f"  {name:32} {'   '.join(figures)}")


if __name__ == "__main__":
    main()
