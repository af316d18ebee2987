"""Measure how fast `martlet --help` answers; `make bench` writes results/startup.json."""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

from martlet.bench.record import checkout_commit
from martlet.device.probe import probe_cpu

RESULTS = Path(__file__).parent / "results" / "startup.json"
_RUNS = 20


def main() -> None:
    """Measure, write the file, print its row."""
    command = [sys.executable, "-m", "martlet", "--help"]
    seconds = []
    for _ in range(_RUNS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    row = {
        "command": "python -m martlet --help",
        "median_seconds": statistics.median(seconds[1:]),  # the first one may read the disk
        "max_seconds": max(seconds[1:]),
        "runs": _RUNS,
        "device": probe_cpu().name,
        "python": platform.python_version(),
        "commit": checkout_commit(Path(__file__).parents[1] / "src/martlet"),
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps([row], indent=2) + "\n", encoding="utf-8")
    print(f"{RESULTS}: median {row['median_seconds']:.3f} s, at most {row['max_seconds']:.3f} s")


if __name__ == "__main__":
    main()
