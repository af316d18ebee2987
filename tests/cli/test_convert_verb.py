import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import martlet as martlet_package


def test_convert_makes_a_folder_that_answers_and_says_what_it_did(martlet, tiny_cpm1, tmp_path):
    done = martlet("convert", tiny_cpm1, tmp_path / "small", "--quantize", "int8")
    assert done.code == 0
    assert done.stdout.count("\n") == 1
    assert "quantize int8" in done.stdout
    model = martlet_package.load(tmp_path / "small")
    shown = json.loads(martlet("show", tmp_path / "small", "--json").stdout)
    assert shown["quantize"] == shown["formats"][0]["format"] == "int8"
    assert model.write("却说", max_tokens=3, seed=1)


def test_convert_rounds_to_any_format(martlet, tiny_cpm1, tmp_path):
    done = martlet("convert", tiny_cpm1, tmp_path / "small", "--quantize", "int4-g64-asym")
    assert done.code == 0
    assert "quantize int4 (6.07 bits a weight)" in done.stdout
    refused = martlet("convert", tiny_cpm1, tmp_path / "no", "--quantize", "int5")
    assert refused.code == 2
    assert "int4-gN-asym with N 32, 64 or 128" in refused.stderr


def test_convert_json_is_the_report(martlet, tiny_cpm1, tmp_path):
    done = martlet("convert", tiny_cpm1, tmp_path / "copy", "--json")
    report = json.loads(done.stdout)
    assert report["path"] == str(tmp_path / "copy")
    assert report["family"] == "cpm1"
    assert report["quantize"] == "none"
    assert report["nbytes"] > 0


def test_convert_replaces_a_folder_only_when_asked(martlet, tiny_cpm1, tmp_path):
    assert martlet("convert", tiny_cpm1, tmp_path / "copy").code == 0
    assert martlet("convert", tiny_cpm1, tmp_path / "copy").code == 2
    assert martlet("convert", tiny_cpm1, tmp_path / "copy", "--overwrite").code == 0


def test_convert_says_when_there_is_nothing_or_nothing_known(martlet, tmp_path):
    assert martlet("convert", tmp_path / "missing", tmp_path / "out").code == 3
    assert martlet("convert", "x" * 5000, tmp_path / "out").code == 3
    (tmp_path / "empty").mkdir()
    assert martlet("convert", tmp_path / "empty", tmp_path / "out").code == 6
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("destination", ["file/out", "x" * 300])
def test_a_destination_that_cannot_be_a_folder_gives_2(martlet, tiny_cpm1, tmp_path, destination):
    (tmp_path / "file").write_text("")
    done = martlet("convert", tiny_cpm1, tmp_path / destination)
    assert done.code == 2
    assert done.stderr.startswith("error: ")
    assert "choose another" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_while_converting_gives_5_and_leaves_nothing(
    martlet, monkeypatch, tiny_cpm1, tmp_path
):
    from martlet.checkpoint.writer import StoreWriter

    def full(*_):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr(StoreWriter, "write", full)
    done = martlet("convert", tiny_cpm1, tmp_path / "out")
    assert done.code == 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_ctrl_c_while_converting_gives_130_and_leaves_nothing(make_model, tmp_path):
    big = make_model("cpm1", config={"n_embd": 512, "n_head": 8})
    for _ in range(10):  # on a busy machine the conversion may be done before the signal is sent
        process = subprocess.Popen(
            [sys.executable, "-m", "martlet", "convert", str(big), str(tmp_path / "out")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        end = time.monotonic() + 60
        # Something lies beside the destination as soon as the writing has begun.
        while not any(tmp_path.iterdir()) and time.monotonic() < end:
            time.sleep(0.001)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        if process.returncode != 0:
            break
        shutil.rmtree(tmp_path / "out")
    assert (process.returncode, stdout, stderr) == (130, b"", b"interrupted\n")
    assert list(tmp_path.iterdir()) == []
