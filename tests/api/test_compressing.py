import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import martlet
from martlet.checkpoint.store import open_store
from martlet.compression.work_folder import work_path
from martlet.errors import CapacityError, UsageError

TEXT = Path(__file__).parent.parent / "golden" / "held-out.txt"
OPTIONS = {
    "calibration": TEXT,
    "samples": 6,
    "sample_tokens": 32,
    "device": "cpu",
    "format": "int4-g32",
    "method": "scaled+gptq",
}
# Kills itself the hard way once two blocks are done.
KILLED = """
import os, signal, sys
import martlet

blocks = []

def progress(done, total, what):
    blocks.append(what)
    if len(blocks) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

martlet.quantize(
    sys.argv[1], sys.argv[2], calibration=sys.argv[3], samples=6, sample_tokens=32, device="cpu",
    format="int4-g32", method="scaled+gptq", progress=progress,
)
"""


@pytest.fixture(scope="module")
def compressed(tiny_eva, tmp_path_factory):
    """A tiny EVA that was compressed in one go, and the report of it."""
    folder = tmp_path_factory.mktemp("compressed") / "model"
    return folder, martlet.quantize(tiny_eva, folder, **OPTIONS)


def _interrupt(*_):
    raise KeyboardInterrupt


def _digests(folder):
    files = open_store(folder).manifest.files
    return {name: entry.sha256 for name, entry in files.items()}


def test_a_compressed_model_loads_and_says_how_it_was_made(compressed, tiny_eva):
    folder, report = compressed
    store = open_store(folder)
    assert store.quantize == "int4"
    assert store.family == "eva"
    made = store.manifest.compression
    assert made["method"] == "scaled+gptq"
    assert made["recipe"] == {"default": "int4-g32"}
    assert made["calibration"]["file"] == "held-out.txt"
    assert len(made["calibration"]["sha256"]) == 64
    assert made["martlet"] == martlet.__version__
    assert report.num_samples == 6
    # Seven matrices of a feed-forward and an attention, four more of the decoder's cross attention.
    assert len(report.layers) == 2 * 7 + 2 * 11 + 2
    model = martlet.load(folder)
    assert model.chat([{"role": "user", "content": "你好"}], max_tokens=3) is not None


def test_nothing_but_the_destination_is_left(compressed):
    folder, _ = compressed
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_work_that_was_killed_goes_on_and_ends_in_the_same_bits(compressed, tiny_eva, tmp_path):
    folder, whole = compressed
    again = tmp_path / "again"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, tiny_eva, again, TEXT], check=False, capture_output=True
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not again.exists()
    assert {"encoder.0", "encoder.1"} <= set(os.listdir(work_path(again)))
    lines = []
    report = martlet.quantize(
        tiny_eva, again, **OPTIONS, progress=lambda *step: lines.append(step[2])
    )
    assert report.resumed_blocks == 2
    assert lines[:2] == ["encoder.0: done before", "encoder.1: done before"]
    assert _digests(again) == _digests(folder)
    assert [layer.name for layer in report.layers] == [layer.name for layer in whole.layers]
    assert not work_path(again).exists()


def test_other_options_start_anew_and_say_so(tiny_eva, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        martlet.quantize(tiny_eva, tmp_path / "out", **OPTIONS, progress=_interrupt)
    lines = []
    report = martlet.quantize(
        tiny_eva,
        tmp_path / "out",
        **{**OPTIONS, "seed": 5},
        progress=lambda *step: lines.append(step[2]),
    )
    assert "dropped" in lines[0]
    assert report.resumed_blocks == 0


def test_a_block_that_was_damaged_meanwhile_is_made_again(tiny_eva, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        martlet.quantize(tiny_eva, out, **OPTIONS, progress=_interrupt)
    file = work_path(out) / "encoder.0" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    assert martlet.quantize(tiny_eva, out, **OPTIONS).resumed_blocks == 0


def test_two_at_a_time_do_not_write_to_one_destination(tiny_eva, tmp_path):
    def start_another(*_):
        with pytest.raises(UsageError, match="another process"):
            martlet.quantize(tiny_eva, tmp_path / "out", **OPTIONS)

    martlet.quantize(tiny_eva, tmp_path / "out", **OPTIONS, progress=start_another)


def test_nearest_needs_no_calibration(tiny_cpm1, tmp_path):
    report = martlet.quantize(
        tiny_cpm1, tmp_path / "out", method="nearest", format="int8", edges="int8-g32"
    )
    assert report.num_tokens == 0
    assert set(report.blocks.values()) == {None}
    assert open_store(tmp_path / "out").quantize == "int8"


def test_the_report_is_written_as_json_and_drawn(tiny_cpm1, tmp_path):
    pytest.importorskip("matplotlib")
    outputs = {"report": tmp_path / "report.json", "plot": tmp_path / "errors.svg"}
    report = martlet.quantize(tiny_cpm1, tmp_path / "out", **OPTIONS, **outputs)
    written = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(report.to_json()))
    assert {layer["format"] for layer in written["layers"]} == {"int4-g32"}
    assert all(layer["error_after"] <= layer["error_before"] for layer in written["layers"])
    assert (tmp_path / "errors.svg").read_text(encoding="utf-8").count("<svg") == 1
    martlet.quantize(tiny_cpm1, tmp_path / "out2", **OPTIONS, plot=tmp_path / "errors.png")
    assert (tmp_path / "errors.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_the_extra_is_refused_before_the_work(tiny_cpm1, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"martlet\[plot\]"):
        martlet.quantize(tiny_cpm1, tmp_path / "out", **OPTIONS, plot=tmp_path / "errors.svg")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "nearest, gptq, scaled"),
        ({"format": "int5"}, "int5"),
        ({"head": "float"}, "head is 'float'"),
        ({"rules": ["nonsense"]}, "PATTERN=FORMAT"),
        ({"rules": ["*.nowhere=int8"]}, "fits no matrix"),
        ({"calibration": None}, "--calibration FILE"),
        ({"calibration": "missing.txt"}, "cannot be read"),
        ({"samples": 0}, "samples is 0"),
        ({"sample_tokens": 4}, "sample_tokens is 4"),
        ({"device": "tpu"}, "auto, cuda or cpu"),
        ({"ram": "lots"}, "ram"),
        ({"report": "no/such/folder/report.json"}, "does not exist"),
        ({"plot": "errors.pdf"}, ".svg or .png"),
    ],
)
def test_what_is_not_valid_is_refused_before_the_work(options, message, tiny_cpm1, tmp_path):
    with pytest.raises(UsageError, match=message):
        martlet.quantize(tiny_cpm1, tmp_path / "out", **{**OPTIONS, **options})
    assert list(tmp_path.iterdir()) == []


def test_integers_are_not_compressed_again(tiny_cpm2, tmp_path):
    with pytest.raises(UsageError, match="int8 weights already"):
        martlet.quantize(tiny_cpm2, tmp_path / "out", **OPTIONS)


def test_too_little_memory_is_said_before_the_work(tiny_cpm1, tmp_path):
    with pytest.raises(CapacityError, match="main memory"):
        martlet.quantize(tiny_cpm1, tmp_path / "out", **{**OPTIONS, "ram": "20MiB"})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.gpu
def test_a_gpu_compresses_within_its_budget(tiny_eva, tmp_path):
    options = {**OPTIONS, "device": "cuda", "gpu_memory": "2GiB"}
    report = martlet.quantize(tiny_eva, tmp_path / "out", **options)
    assert report.device == "cuda:0"
    assert report.peak_gpu_bytes is None or report.peak_gpu_bytes < 2 << 30
    torch.cuda.empty_cache()
    assert martlet.load(tmp_path / "out").plan is not None
