"""Many clients at a time: tokens per second of all, and the wait for the first token.

    PYTHONPATH=src python benchmarks/serving.py --shapes cpm2-11b --budgets none,6GiB
    python benchmarks/serving.py --models cpm1-mini,cpm2-mini,eva-mini --device cpu

Each client asks for one text after the other; lengths vary between half and one and a half of
those given. Shapes have random weights; every setting runs in a process of its own. Rows of an
earlier run that measured the same are replaced, all others kept.
"""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

import apart
from apart import Row

RESULTS = Path(__file__).parent / "results" / "serving.json"
_IDENTITY = ("shape", "quantize", "device", "gpu_memory_budget_bytes", "num_clients", "num_slots")


def main() -> None:
    """Measure every setting, and say at the end what failed."""
    options = _parse()
    if options.one:
        print(json.dumps(_measure(options, options.one)))
        return
    failed = 0
    for name in options.shapes + options.models:
        for budget in options.budgets:
            start = time.perf_counter()
            rows, problem = _run(
                [*sys.argv[1:], "--one", name, "--budget", budget], options.timeout
            )
            if rows is None:
                failed += 1
                print(f"FAILED {name} {budget}: {problem}", flush=True)
                continue
            store(options.out, rows, options.commit)
            for row in rows:
                print(line(row), flush=True)
            print(f"-- {time.perf_counter() - start:.0f} s", flush=True)
    if failed:
        sys.exit(f"{failed} settings failed")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=_words, default=[])
    parser.add_argument("--models", type=_words, default=[])
    parser.add_argument("--budgets", type=_words, default=["none"])
    parser.add_argument("--clients", type=_words, default=["1", "4", "16"])
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=128)
    parser.add_argument("--chunk-tokens", type=int, default=None)
    parser.add_argument("--texts", type=int, default=4, help="that count, of each client")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one setting")
    parser.add_argument("--commit", help="recorded where the sources are in no git checkout")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--budget", help=argparse.SUPPRESS)
    return parser.parse_args()


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _measure(options: argparse.Namespace, name: str) -> list[Row]:
    from martlet.bench.measure_batch import Load, measure_model_batch, measure_shape_batch
    from martlet.bench.opening import Setting
    from martlet.bench.shapes import find_shape
    from martlet.device.size import parse_bytes
    from martlet.engine.batch_limits import CHUNK_TOKENS, BatchLimits
    from martlet.models.config import load_architecture

    loads = [
        Load(int(clients), options.prompt_tokens, options.output_tokens, options.texts)
        for clients in options.clients
    ]
    budget = None if options.budget == "none" else parse_bytes(options.budget, "--budgets")
    command = " ".join(["python", "benchmarks/serving.py", *_without_one(sys.argv[1:])])
    if name in options.models:
        return [
            asdict(row)
            for row in measure_model_batch(name, options.device, options.slots, loads, command)
        ]
    shape = find_shape(name)
    longest_prompt = options.prompt_tokens * 3 // 2
    longest_output = options.output_tokens * 3 // 2
    has_encoder = load_architecture(shape.config).has_encoder
    limits = BatchLimits(
        options.slots,
        longest_output + (1 if has_encoder else longest_prompt),
        longest_prompt if has_encoder else None,
        options.chunk_tokens or CHUNK_TOKENS,
    )
    setting = Setting(device=options.device, gpu_memory_bytes=budget)
    return [asdict(row) for row in measure_shape_batch(shape, setting, limits, loads, command)]


def _without_one(arguments: list[str]) -> list[str]:
    at = arguments.index("--one")
    return arguments[:at]


def _run(arguments: list[str], timeout: float) -> tuple[list[Row] | None, str]:
    """The rows of one setting, or None and why there are none."""
    printed, problem = apart.run([str(Path(__file__).resolve()), *arguments], timeout)
    return (None, problem) if printed is None else (json.loads(printed.splitlines()[-1]), "")


def store(path: Path, rows: list[Row], commit: str | None) -> None:
    """Put rows in the place of those that measured the same, or behind all others."""
    for row in rows:
        apart.store(path, {**row, "commit": row["commit"] or commit}, _IDENTITY)


def line(row: Row) -> str:
    """A row to look at."""
    budget = row["gpu_memory_budget_bytes"]
    peak = row["peak_gpu_process_bytes"]
    parts = [
        f"{row['shape']:<10} {row['quantize']:<5}",
        f"budget {'none' if budget is None else f'{budget / 2**30:.2f} GiB':<9}",
        f"{row['num_clients']:>3} clients",
        f"{row['total_tokens_per_second']:9.1f} t/s",
        f"each {row['tokens_per_second_of_one']:7.1f} t/s",
        f"first token {1e3 * row['time_to_first_token_p50_seconds']:6.0f} ms",
        f"p95 {1e3 * row['time_to_first_token_p95_seconds']:6.0f} ms",
        f"peak {'-' if peak is None else f'{peak / 2**30:.2f} GiB'}",
    ]
    return "  ".join(parts)


if __name__ == "__main__":
    main()
