"""Measure how fast the blocks of GGUF files become our groups, by native code and by torch.

    python benchmarks/gguf_blocks.py

One thread, a matrix of 2,048 rows in memory, the best of several times; into memory that has been
written before, so that the faults of new pages, which a machine has its own price for, stay out.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

# tokenizers.py beside this file would be found in place of the library of that name.
sys.path.remove(str(Path(__file__).resolve().parent))

import torch

import martlet
from martlet.bench.record import checkout_commit
from martlet.conversion.gguf_blocks import FORMATS, fill_by_native_code, fill_by_torch, new_weight
from martlet.quantization.block_types import BLOCK_TYPES

RESULTS = Path(__file__).parent / "results" / "gguf-blocks.json"
_ROWS, _COLUMNS = 2048, 14336


def seconds_of(work: Callable[[], object], repeats: int) -> float:
    """The shortest of several times."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Measure every type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in (kind for kind in BLOCK_TYPES.values() if kind.name in FORMATS):
        numbers = torch.arange(_ROWS * (_COLUMNS // kind.elements) * kind.nbytes)
        # Noise in which no float16 is infinite.
        data = (numbers * 2654435761 >> 7 & 0xBF).to(torch.uint8).view(_ROWS, -1)
        weight = new_weight(torch.Size((_ROWS, _COLUMNS)), kind)
        for route, fill in (("native", fill_by_native_code), ("torch", fill_by_torch)):
            fill(weight, data, kind, kind.name)
            seconds = seconds_of(lambda: fill(weight, data, kind, kind.name), options.repeats)  # noqa: B023
            rows.append(
                {
                    "type": kind.name,
                    "route": route,
                    "format": weight.format.name,
                    "file_bytes_per_second": data.nbytes / seconds,
                    "nanoseconds_per_number": seconds * 1e9 / weight.shape.numel(),
                    "num_threads": 1,
                    "torch": torch.__version__,
                    "commit": checkout_commit(Path(martlet.__file__).parent),
                }
            )
            print(f"{kind.name} {route}: {data.nbytes / seconds / 1e6:,.0f} MB/s", flush=True)
    options.out.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
