"""Measure the bundled models on this machine; `make bench` writes benchmarks/results/minis.json.

Each model is measured in a process of its own, so that its peak memory is its own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from martlet.hub.catalogue import BUNDLED

RESULTS = Path(__file__).parent / "results" / "minis.json"
_COMMAND = ("bench", "--prompt-tokens", "128", "--max-tokens", "64", "--repetitions", "5")


def main() -> None:
    """Measure, write the file, print its rows."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in BUNDLED:
            output = Path(folder) / f"{model}.json"
            verb, *flags = _COMMAND
            arguments = [verb, model, *flags, "--output", str(output)]
            subprocess.run([sys.executable, "-m", "martlet", *arguments], check=True)
            (row,) = json.loads(output.read_text(encoding="utf-8"))
            # The temporary file is of no use to whoever repeats the measurement.
            rows.append({**row, "command": " ".join(["martlet", *arguments[:-2]])})
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    print(f"\n{RESULTS}: {len(rows)} rows")


if __name__ == "__main__":
    main()
