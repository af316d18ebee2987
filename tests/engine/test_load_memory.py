"""What loading takes of the memory of a process: the finished weights, and about one tensor."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Matrices of 2 to 6 MiB as bfloat16 and a table of 16: far more together than one of them.
CONFIG = {
    "model_type": "gpt2",
    "vocab_size": 8192,
    "n_positions": 64,
    "n_embd": 1024,
    "n_layer": 5,
    "n_head": 4,
    "n_inner": 2048,
}
TABLE_BYTES = 8192 * 1024 * 2
# Code, stacks and what the allocator keeps: measured are 2 to 9 MiB.
SLACK_BYTES = 20 << 20

PROGRAM = """
import json, sys, threading
import torch
torch.set_num_threads(1)
from martlet.api.opening import open_model
from martlet.compression.absmax import quantize_rows
from martlet.engine.load_options import LoadOptions
from martlet.kernels.cpu.round_rows import find_rounder

def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))

folder, quantize = sys.argv[1:]
opened = open_model(folder)
planned = opened.plan(LoadOptions(device="cpu", quantize=quantize))
opened.tokenizer()
quantize_rows(torch.randn(8, 1 << 17))  # loads the native code
before = status("VmRSS")
seen = []
# Clear what the kernel remembers as the peak.
open("/proc/self/clear_refs", "w").write("5")
model = opened.load("m", planned, lambda done, total, name: seen.append(status("VmRSS")))
print(json.dumps({
    "before": before,
    "peak": status("VmHWM"),
    "after": status("VmRSS"),
    "weights": sum(p.nbytes for p in planned.plan.phases[0].placements),
    "tensors": len(seen),
}))
"""


@pytest.fixture(scope="module")
def folder(make_hub_folder):
    return make_hub_folder(config=CONFIG, shards=3)


def loaded(folder, quantize):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), quantize],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            # Memory that is given back goes back to the system, so that the peak is a true one.
            "MALLOC_TRIM_THRESHOLD_": "65536",
            "MALLOC_MMAP_THRESHOLD_": "65536",
            "PYTHONPATH": str(Path(__file__).parents[2] / "src"),
        },
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("quantize", ["int8", "none"])
def test_the_peak_is_the_finished_weights_and_one_tensor(folder, quantize):
    result = loaded(folder, quantize)
    file_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    grown = result["peak"] - result["before"]
    assert grown > 0.9 * result["weights"]
    assert grown < result["weights"] + TABLE_BYTES + SLACK_BYTES, result
    assert result["after"] - result["before"] < result["weights"] + SLACK_BYTES
    assert file_bytes > 2 * (TABLE_BYTES + SLACK_BYTES), "pages that are kept would go unnoticed"
