import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import martlet as martlet_package
from martlet.cli.quantize import command

TEXT = Path(__file__).parent.parent / "golden" / "held-out.txt"
CALIBRATION = ("--calibration", TEXT, "--samples", "4", "--sample-tokens", "32", "--device", "cpu")


def test_quantize_tells_of_every_block_and_ends_with_a_line(martlet, tiny_cpm1, tmp_path):
    done = martlet("quantize", tiny_cpm1, tmp_path / "small", *CALIBRATION, "--format", "int4")
    assert done.code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert "cpm1, gptq" in done.stdout
    assert "bits a weight" in done.stdout
    lines = [line for line in done.stderr.splitlines() if " -> " in line]
    assert [line.split(":")[0] for line in lines] == ["decoder.0", "decoder.1", "fixed"]
    shown = json.loads(martlet("show", tmp_path / "small", "--json").stdout)
    assert shown["quantize"] == "int4"
    assert martlet_package.load(tmp_path / "small").write("却说", max_tokens=3, seed=1)


def test_without_a_text_the_folder_holds_what_loading_makes(martlet, make_hub_folder, tmp_path):
    source = make_hub_folder()
    done = martlet("quantize", source, tmp_path / "small", "--device", "cpu")
    assert done.code == 0, done.stderr
    assert "gpt2, nearest" in done.stdout
    loaded, saved = (martlet_package.load(each) for each in (source, tmp_path / "small"))
    assert (loaded.weight_type, saved.weight_type) == ("int8", "int8")
    assert torch.equal(loaded.logits([1, 2, 3]), saved.logits([1, 2, 3]))


def test_quantize_json_has_the_report_of_all_layers(martlet, tiny_eva, tmp_path):
    done = martlet(
        *("quantize", tiny_eva, tmp_path / "small", *CALIBRATION, "--method", "scaled"),
        *("--head", "int8", "--edges", "int8-g32", "--rule", "*.o.weight=none", "--json"),
    )
    assert done.code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["path"] == str(tmp_path / "small")
    assert report["recipe"]["rules"] == ["*.o.weight=none"]
    formats = {layer["name"]: layer["format"] for layer in report["layers"]}
    assert formats["lm_head.weight"] == "int8"
    assert formats["encoder.block.0.layer.0.SelfAttention.q.weight"] == "int8-g32"
    assert not any(name.endswith(".o.weight") for name in formats)
    assert 0 < report["blocks"]["decoder.1"] < 1


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--format", "int3"), 2, "int4-gN"),
        (("--method", "awq"), 2, "--method"),
        (("--calibration", "missing.txt"), 2, "cannot be read"),
        (("--method", "gptq"), 2, "--calibration FILE"),
        (("--method", "nearest", "--ram", "10MiB"), 4, "--ram"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_a_code(
    martlet, tiny_cpm1, tmp_path, options, code, message
):
    done = martlet("quantize", tiny_cpm1, tmp_path / "small", *options, "--device", "cpu")
    assert done.code == code
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_is_not_there_gives_3(martlet, tmp_path):
    assert martlet("quantize", tmp_path / "no", tmp_path / "out").code == 3


def test_help_is_there_without_torch():
    code = (
        "import sys; from martlet.cli.verbs import run_command; "
        "run_command(['quantize', '--help']); assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "--calibration" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cpm1-mini", "cpm2-mini"])
def test_gptq_keeps_more_of_a_trained_model_than_rounding_to_nearest(martlet, tmp_path, name):
    """The weights are the bundled ones as floats, the text is halved: one half is never seen."""
    text = TEXT.read_text(encoding="utf-8")
    middle = text.index("\n", len(text) // 2)
    (tmp_path / "seen.txt").write_text(text[:middle], encoding="utf-8")
    (tmp_path / "unseen.txt").write_text(text[middle:], encoding="utf-8")
    # The zoo lies inside the package, whose folder says where the models are.
    bundled = Path(martlet_package.__file__).parent / "zoo" / name
    floats = tmp_path / "floats"
    assert martlet("convert", bundled, floats, "--quantize", "none").code == 0
    for method in ("nearest", "gptq"):
        done = martlet(
            *("quantize", floats, tmp_path / method, "--method", method, "--format", "int4-g128"),
            *("--embedding", "int8", "--calibration", tmp_path / "seen.txt", "--samples", "32"),
            *("--sample-tokens", "192", "--device", "cpu"),
        )
        assert done.code == 0, done.stderr
    scored = martlet(
        *("perplexity", tmp_path / "nearest", tmp_path / "gptq", tmp_path / "unseen.txt"),
        *("--against", floats, "--json"),
    )
    assert scored.code == 0, scored.stderr
    # On so short a text a perplexity is now and then better by chance, a divergence is not.
    by_folder = {Path(row["model"]).name: row for row in json.loads(scored.stdout)}
    assert 0 < by_folder["gptq"]["kl"] < 0.95 * by_folder["nearest"]["kl"]


def test_flags_have_the_defaults_of_the_function():
    parameters = inspect.signature(martlet_package.quantize).parameters
    flags = {flag.name: flag.default for flag in command.params}
    for name in ("method", "format", "samples", "sample_tokens", "seed", "device"):
        assert flags[name] == parameters[name].default, name
