"""Times a conversion at the real size of CPM-1: 2.6 B parameters, float16, two Megatron shards.

    python benchmarks/convert.py SCRATCH_FOLDER [--quantize int8] [--layers 32] [--out FILE]

Writes about 5.2 GB of random shards into a new folder below SCRATCH_FOLDER, converts them in a
child process, prints one row as JSON and deletes the folder. The anonymous part of the peak is
what the machine must really have: mapped pages of the source can be dropped at any time.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch

import martlet

VOCAB, WIDTH, POSITIONS = 30000, 2560, 1024
BLOCK_BYTES = 64 << 20


def shapes(num_layers: int) -> dict[str, tuple[int, ...]]:
    """One of two shards of CPM-1, by the names of the release."""
    half, inner = WIDTH // 2, 2 * WIDTH
    table: dict[str, tuple[int, ...]] = {
        "word_embeddings.weight": (VOCAB // 2, WIDTH),
        "position_embeddings.weight": (POSITIONS, WIDTH),
    }
    for i in range(num_layers):
        at = f"transformer.layers.{i}."
        table |= {
            at + "input_layernorm.weight": (WIDTH,),
            at + "input_layernorm.bias": (WIDTH,),
            at + "attention.query_key_value.weight": (3 * half, WIDTH),
            at + "attention.query_key_value.bias": (3 * half,),
            at + "attention.dense.weight": (WIDTH, half),
            at + "attention.dense.bias": (WIDTH,),
            at + "post_attention_layernorm.weight": (WIDTH,),
            at + "post_attention_layernorm.bias": (WIDTH,),
            at + "mlp.dense_h_to_4h.weight": (inner, WIDTH),
            at + "mlp.dense_h_to_4h.bias": (inner,),
            at + "mlp.dense_4h_to_h.weight": (WIDTH, inner),
            at + "mlp.dense_4h_to_h.bias": (WIDTH,),
        }
    for part in ("weight", "bias"):
        table[f"transformer.final_layernorm.{part}"] = (WIDTH,)
    return table


def write_shard(path: Path, num_layers: int, block: bytes) -> int:
    """A shard in the zip layout of torch.save, filled with one random block again and again."""
    table = shapes(num_layers)
    # torch writes the small part (names, shapes, types) from tensors without memory behind them;
    # the storages are put into the zip file here, since they do not fit into memory at once.
    skeleton = path.with_suffix(".skeleton")
    with torch.serialization.skip_data():
        module = OrderedDict((n, torch.empty(s, dtype=torch.float16)) for n, s in table.items())
        torch.save({"module": module, "optimizer": None, "mp_world_size": 2}, skeleton)
    del module
    size = 0
    with zipfile.ZipFile(skeleton) as source, zipfile.ZipFile(path, "w") as target:
        for info in source.infolist():
            with target.open(info.filename, "w", force_zip64=True) as member:
                if "/data/" not in info.filename:
                    member.write(source.read(info))
                    continue
                left = info.file_size
                size += left
                while left:
                    left -= member.write(block[: min(left, len(block))])
    skeleton.unlink()
    return size


def random_block() -> bytes:
    """Finite random weights of a plausible size."""
    generator = torch.Generator().manual_seed(1)
    numbers = torch.randn(BLOCK_BYTES // 2, generator=generator).mul_(0.02).half()
    return numbers.numpy().tobytes()


CHILD = """
import json, sys
from pathlib import Path
from martlet.conversion.convert import convert
report = convert(Path(sys.argv[1]), Path(sys.argv[2]), quantize=sys.argv[3])
print(json.dumps({"seconds": report.seconds, "output_bytes": report.nbytes,
                  "num_tensors": report.num_tensors, "peak_rss_bytes": report.peak_rss_bytes}))
"""


def convert_in_child(source: Path, target: Path, quantize: str) -> dict[str, float]:
    """Run the conversion and watch the anonymous memory of its process."""
    command = [sys.executable, "-c", CHILD, str(source), str(target), quantize]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0

    def watch() -> None:
        nonlocal peak
        while child.poll() is None:
            try:
                lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
            except OSError:
                return
            for line in lines:
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]) * 1024)
            time.sleep(0.02)

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = child.communicate()
    watcher.join()
    if child.returncode:
        raise SystemExit(f"the conversion failed with status {child.returncode}")
    return {**json.loads(output), "peak_rss_anonymous_bytes": peak}


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Make the shards, convert them, print and keep the row."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--quantize", default="int8", choices=("none", "int8"))
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        step = Path(folder) / "source" / "80000"
        step.mkdir(parents=True)
        (step.parent / "latest_checkpointed_iteration.txt").write_text("80000")
        block = random_block()
        source_bytes = 0
        for rank in range(2):
            path = step / f"mp_rank_{rank:02d}_model_states.pt"
            source_bytes += write_shard(path, options.layers, block)
            # Start from the disk, as a user's first conversion does, not from the page cache.
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)
        del block
        result = convert_in_child(step.parent, Path(folder) / "target", options.quantize)
    whole = sum(math.prod(shape) for shape in shapes(options.layers).values())
    row = {
        "shape": f"cpm1, {options.layers} layers, two shards of {whole:,} float16 numbers",
        "quantize": options.quantize,
        "device": f"cpu, {os.cpu_count()} cores, {platform.machine()}",
        "torch": torch.__version__,
        "version": martlet.__version__,
        "commit": _commit(),
        "command": "python benchmarks/convert.py SCRATCH --quantize " + options.quantize,
        "source_bytes": source_bytes,
        "source_gigabytes_per_second": round(source_bytes / 1e9 / result["seconds"], 3),
        **result,
        "peer": None,
    }
    text = json.dumps([row], indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
