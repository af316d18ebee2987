"""Measure shapes at several GPU memory budgets, and peers; writes a list of rows.

    PYTHONPATH=src python benchmarks/h200.py --shapes cpm2-11b --budgets none,6GiB,3GiB,1.5GiB
    PYTHONPATH=src python benchmarks/h200.py --shapes llama-8b --budgets 5GiB --peers accelerate

Every measurement runs in a process of its own, so that its peak memory is its own. One that fails
or takes too long is told and left out; rows are written as they come. Rows of an earlier run that
measured the same (shape, protocol, batch, budget, form, peer, tokens of the prompt) are replaced,
all others kept.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import apart
from apart import Row
from martlet.bench.shapes import find_shape
from martlet.device.size import parse_bytes

RESULTS = Path(__file__).parent / "results" / "h200.json"
_IDENTITY = (
    "shape",
    "quantize",
    "protocol",
    "batch",
    "gpu_memory_budget_bytes",
    "peer",
    "prompt_tokens",
)


def main() -> None:
    """Run everything that was asked for, and say at the end what failed."""
    options = _parse()
    failed = 0
    for command in _commands(options):
        shown = " ".join(command)
        start = time.perf_counter()
        rows, problem = _run(command, options.timeout)
        seconds = time.perf_counter() - start
        if not rows:
            failed += 1
            print(f"FAILED after {seconds:.0f} s: {shown}\n  {problem}", flush=True)
        for row in rows:
            row["command"] = shown
            row["commit"] = row["commit"] or options.commit
            apart.store(options.out, row, _IDENTITY)
            print(f"{_line(row)}  [{seconds:.0f} s]", flush=True)
    if failed:
        sys.exit(f"{failed} measurements failed")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", type=_words, default=["cpm2-11b"])
    parser.add_argument("--budgets", type=_words, default=["none", "6GiB", "3GiB", "1.5GiB"])
    parser.add_argument("--batches", type=_words, default=["1"])
    parser.add_argument("--protocols", type=_words, default=["default"])
    parser.add_argument("--quantize", default="int8", help="none, or the name of a format")
    parser.add_argument("--peers", type=_words, default=[])
    parser.add_argument("--no-ours", action="store_true", help="measure peers alone")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repetitions", default="3")
    parser.add_argument("--max-tokens", help="instead of the protocol's")
    parser.add_argument("--prompt-tokens", type=_words, help="lengths instead of the protocol's")
    parser.add_argument("--timeout", type=float, default=240, help="seconds for one measurement")
    parser.add_argument("--commit", help="recorded where the sources are in no git checkout")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    for budget in options.budgets:
        if budget != "none":
            parse_bytes(budget, "--budgets")
    for shape in options.shapes:
        find_shape(shape)
    return options


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _commands(options: argparse.Namespace) -> Iterator[list[str]]:
    """What to run, without the interpreter, as a reader of the row would repeat it."""
    lengths = ["--repetitions", options.repetitions]
    lengths += ["--max-tokens", options.max_tokens] if options.max_tokens else []
    prompts = [["--prompt-tokens", length] for length in options.prompt_tokens or []]
    for shape in options.shapes:
        for protocol in options.protocols:
            chosen = [] if protocol == "default" else ["--protocol", protocol]
            for batch in options.batches:
                common = ["--shape", shape, *chosen, "--batch", batch, *lengths]
                common += ["--device", options.device]
                for prompt in prompts or [[]]:
                    if not options.no_ours:
                        yield from _our_commands([*common, *prompt], options)
                # A peer measures all lengths with one model.
                joined = ["--prompt-tokens", ",".join(options.prompt_tokens)] if prompts else []
                yield from _peer_commands([*common, *joined], options)


def _our_commands(common: list[str], options: argparse.Namespace) -> Iterator[list[str]]:
    for budget in options.budgets:
        limit = [] if budget == "none" else ["--gpu-memory", budget]
        yield ["martlet", "bench", *common, "--quantize", options.quantize, *limit]


def _peer_commands(common: list[str], options: argparse.Namespace) -> Iterator[list[str]]:
    script = "benchmarks/peers/generate.py"
    if "transformers" in options.peers:
        yield ["python", script, "--peer", "transformers", *common]
    if "accelerate" in options.peers:
        for budget in options.budgets:
            if budget != "none":
                yield ["python", script, "--peer", "accelerate", *common, "--gpu-memory", budget]


def _run(command: list[str], timeout: float) -> tuple[list[Row], str]:
    """The rows that a measurement made, or none and why."""
    is_ours = command[0] == "martlet"
    printed, problem = apart.run(["-m", *command, "--json"] if is_ours else command[1:], timeout)
    if printed is None:
        return [], problem
    made = json.loads(printed)
    return (made if isinstance(made, list) else [made]), ""


def _line(row: Row) -> str:
    budget = row["gpu_memory_budget_bytes"]
    peak = row["peak_gpu_process_bytes"]
    share = row["share_of_limit"]
    parts = [
        f"{row['peer'] or 'martlet':<12} {row['shape']:<9} {row['quantize']:<8}",
        f"{row['protocol']:<10} batch {row['batch']}",
        f"budget {'none' if budget is None else f'{budget / 2**30:.2f} GiB':<9}",
        f"decode {row['decode_tokens_per_second']:8.2f} t/s",
        f"{'' if share is None else f'{share:.1%} of limit':<16}",
        f"prompt {row['prompt_tokens']:4}",
        f"first token {1000 * row['time_to_first_token_seconds']:7.1f} ms",
        f"peak {'-' if peak is None else f'{peak / 2**30:.2f} GiB'}",
    ]
    return "  ".join(parts)


if __name__ == "__main__":
    main()
