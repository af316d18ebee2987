"""Conversions cut short by a full disk, Ctrl-C or kill -9, and what they cost in memory."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from martlet.checkpoint.store import open_store
from martlet.conversion.convert import convert
from martlet.errors import DiskFullError

CONFIG = (
    '{"model_type": "gpt2", "vocab_size": %d, "n_positions": 16, "n_embd": %d, "n_layer": %d, '
    '"n_head": 4}'
)

CHILD = """
import resource, sys
from pathlib import Path
from martlet.conversion.convert import convert
from martlet.errors import MartletError

source, target, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
print("ready", flush=True)
try:
    convert(source, target, quantize="int8", overwrite=True)
except MartletError as error:
    print(type(error).__name__, error)
    sys.exit(error.exit_code)
status = Path("/proc/self/status").read_text().splitlines()
print([line for line in status if line.startswith("RssAnon")][0])
"""


def make(folder: Path, vocab_size: int = 64, width: int = 64, layers: int = 6) -> Path:
    """A GPT-2 checkpoint of some megabytes, in the Hugging Face layout."""
    folder.mkdir()
    (folder / "config.json").write_text(CONFIG % (vocab_size, width, layers))
    shapes = {"wte.weight": (vocab_size, width), "wpe.weight": (16, width)}
    for i in range(layers):
        for name, columns, rows in (
            ("attn.c_attn", 3 * width, width),
            ("attn.c_proj", width, width),
            ("mlp.c_fc", 4 * width, width),
            ("mlp.c_proj", width, 4 * width),
        ):
            shapes[f"h.{i}.{name}.weight"] = (rows, columns)
            shapes[f"h.{i}.{name}.bias"] = (columns,)
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{name}.{part}": (width,) for part in ("weight", "bias")}
    shapes |= {f"ln_f.{part}": (width,) for part in ("weight", "bias")}
    tensors = {name: torch.rand(shape, dtype=torch.float16) for name, shape in shapes.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return folder


def start(source: Path, target: Path, limit: int = 0) -> subprocess.Popen[str]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(source), str(target), str(limit)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    return child


def test_a_full_disk_leaves_no_trace_and_keeps_the_older_model(tmp_path: Path) -> None:
    source, target = make(tmp_path / "source"), tmp_path / "target"
    for older in (False, True):
        if older:
            convert(source, target)
            before = open_store(target).manifest
        child = start(source, target, limit=100_000)
        output, _ = child.communicate(timeout=60)
        assert child.returncode == 5, output
        assert output.startswith("DiskFullError") and "are free" in output
        assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"][: 1 + older]
    store = open_store(target)
    store.verify()
    assert store.manifest == before


def test_a_disk_that_is_known_to_be_too_small_is_not_even_started_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make(tmp_path / "source")
    monkeypatch.setattr("martlet.checkpoint.staging._free_bytes", lambda _: 1_000_000)
    with pytest.raises(DiskFullError, match="1,000,000 are free"):
        convert(source, tmp_path / "target")
    assert [p.name for p in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize("older", [False, True])
def test_ctrl_c_leaves_no_trace_and_keeps_the_older_model(tmp_path: Path, older: bool) -> None:
    source, target = make(tmp_path / "source"), tmp_path / "target"
    if older:
        convert(source, target)
    steps: list[int] = []

    def interrupt(done: int, total: int, name: str) -> None:
        steps.append(done)
        if len(steps) == 20:
            assert list(tmp_path.glob(".target.*.partial")), f"nothing is being written at {name}"
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        convert(source, target, quantize="int8", overwrite=True, progress=interrupt)
    assert len(steps) == 20
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"][: 1 + older]
    if older:
        assert open_store(target).quantize == "none"
        open_store(target).verify()


# Importing torch takes longer than the conversion, so one process imports it once and forks a
# child for each attempt. It runs one whole conversion first to know how long that takes.
KILLER = """
import os, random, shutil, signal, sys, time
from pathlib import Path
from martlet.checkpoint.store import open_store
from martlet.conversion.convert import convert

source, target, count = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])

def attempt():
    child = os.fork()
    if child == 0:
        try:
            convert(source, target, quantize="int8", overwrite=True)
        finally:
            os._exit(0)
    return child

started = time.perf_counter()
os.waitpid(attempt(), 0)
seconds = time.perf_counter() - started
open_store(target).verify()
if sys.argv[4] == "absent":
    shutil.rmtree(target)
chance = random.Random(1)
killed = 0
for _ in range(count):
    child = attempt()
    time.sleep(chance.uniform(0, seconds))
    os.kill(child, signal.SIGKILL)
    killed += os.waitpid(child, 0)[1] == signal.SIGKILL
    if target.exists():
        open_store(target).verify()
        if sys.argv[4] == "absent":
            shutil.rmtree(target)
    elif sys.argv[4] == "older":
        sys.exit("the older model is gone")
print(killed)
"""


@pytest.mark.parametrize("before", ["absent", "older"])
def test_a_killed_conversion_leaves_what_was_there_or_a_model_that_verifies(
    tmp_path: Path, before: str
) -> None:
    source, target = make(tmp_path / "source", width=256), tmp_path / "target"
    done = subprocess.run(
        [sys.executable, "-c", KILLER, str(source), str(target), "25", before],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 5, "hardly any attempt was killed in the middle"
    # The next one succeeds and clears away what the dead ones left.
    convert(source, target, overwrite=True)
    open_store(target).verify()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["source", "target"]


def anonymous_peak_bytes(child: subprocess.Popen[str]) -> tuple[int, int]:
    """Anonymous memory when it says ready, and the largest seen afterwards."""
    first = peak = 0
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
        except OSError:
            break
        for line in status.splitlines():
            if line.startswith("RssAnon:"):
                peak = max(peak, int(line.split()[1]) * 1024)
                first = first or peak
        time.sleep(0.002)
    return first, peak


def test_memory_stays_at_a_tensor_or_two_while_a_big_file_is_converted(tmp_path: Path) -> None:
    # 205 MB of float16; the largest tensor, the embedding, has 16 MB and 8 MB in int8.
    source = make(tmp_path / "source", vocab_size=8000, width=1024, layers=7)
    size_bytes = os.path.getsize(source / "model.safetensors")
    assert size_bytes > 190_000_000
    child = start(source, tmp_path / "target")
    first, peak = anonymous_peak_bytes(child)
    output, errors = child.communicate()
    assert child.returncode == 0, (output, errors)
    # Result and tile of the largest tensor are 12 MB, its modules loaded late some 20 MB. Holding
    # the file, or only the result of all tensors, would be 100 MB or more.
    assert peak - first < 60_000_000
