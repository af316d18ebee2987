"""The driver of the budget table, on the CPU with a tiny shape."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).parents[2] / "benchmarks" / "h200.py"
TINY = {"model_type": "gpt2", "vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 1}


@pytest.fixture
def shape(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**TINY, "n_head": 2}), encoding="utf-8")
    return path


def drive(shape, out, *flags):
    common = ("--device", "cpu", "--repetitions", "1", "--prompt-tokens", "4", "--max-tokens", "3")
    return subprocess.run(
        [sys.executable, DRIVER, "--shapes", shape, "--out", out, *common, *flags],
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_rows_of_the_same_measurement_are_replaced_and_others_kept(shape, tmp_path):
    out = tmp_path / "rows.json"
    old = {
        "shape": str(shape), "quantize": "int8", "protocol": "prefill512", "batch": 1,
        "gpu_memory_budget_bytes": None, "peer": None, "prompt_tokens": 4,
        "decode_tokens_per_second": -1,
    }  # fmt: skip
    out.write_text(json.dumps([old, {**old, "batch": 8}]), encoding="utf-8")
    done = drive(shape, out, "--budgets", "none")
    assert done.returncode == 0, done.stderr
    first, second = json.loads(out.read_text(encoding="utf-8"))
    assert first["decode_tokens_per_second"] > 0
    assert second == {**old, "batch": 8}
    assert first["command"].startswith(f"martlet bench --shape {shape}")
    assert "decode" in done.stdout


def test_a_measurement_that_fails_does_not_end_the_others(shape, tmp_path):
    out = tmp_path / "rows.json"
    other = tmp_path / "broken.json"
    other.write_text('{"model_type": "no-such-model"}', encoding="utf-8")
    done = drive(f"{other},{shape}", out, "--budgets", "none")
    assert done.returncode == 1
    assert "FAILED" in done.stdout
    assert "supported are" in done.stdout
    assert str(shape) in done.stdout.splitlines()[-1]
