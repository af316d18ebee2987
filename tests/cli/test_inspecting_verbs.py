import json

import pytest

import martlet as martlet_package
from martlet.cli import doctor
from martlet.cli.output import duration


def test_show_json_counts_parameters_and_bytes_block_by_block(martlet, tiny_cpm1):
    facts = json.loads(martlet("show", tiny_cpm1, "--json").stdout)
    width = 32
    layer = 12 * width * width + 13 * width  # GPT-2: attention, feed-forward, biases, two norms
    assert facts["blocks"][1]["parameters"] == layer
    assert facts["parameters"] == (30000 + 64) * width + 2 * width + 2 * layer
    assert sum(block["nbytes"] for block in facts["blocks"]) == facts["weight_bytes"]
    assert facts["family"] == "cpm1"
    assert facts["tasks"] == ["write"]
    assert facts["tokenizer"] == {"kind": "cpm1", "files": ["chinese_vocab.model"]}
    assert facts["config"]["n_embd"] == width


def test_scales_of_int8_matrices_are_not_parameters(martlet, make_model):
    int8 = json.loads(martlet("show", make_model("cpm1", quantize="int8"), "--json").stdout)
    plain = json.loads(martlet("show", make_model("cpm1"), "--json").stdout)
    assert int8["parameters"] == plain["parameters"]
    assert int8["quantize"] == "int8"
    assert int8["weight_bytes"] < plain["weight_bytes"] / 3


def test_show_for_people_has_the_same_numbers(martlet, tiny_cpm2):
    facts = json.loads(martlet("show", tiny_cpm2, "--json").stdout)
    shown = martlet("show", tiny_cpm2).stdout
    assert f"{facts['parameters']:,}" in shown
    assert "2 encoder x " in shown
    assert "2 decoder x " in shown


def test_plan_json_is_the_plan_of_the_api(martlet, tiny_cpm2):
    shown = json.loads(martlet("plan", tiny_cpm2, "--json", "--ram", "2GiB").stdout)
    plan = martlet_package.plan(tiny_cpm2, ram="2GiB")
    assert shown.pop("model") == str(tiny_cpm2)
    assert shown == json.loads(json.dumps(plan.to_dict()))


def test_plan_for_people_lists_every_block_and_the_total(martlet, tiny_cpm2):
    shown = martlet("plan", tiny_cpm2).stdout
    for block in ("fixed", "encoder.0", "encoder.1", "decoder.0", "decoder.1"):
        assert f"\n{block}" in shown
    assert "together" in shown


def test_a_plan_beyond_the_memory_gives_4(martlet, tiny_cpm2):
    done = martlet("plan", tiny_cpm2, "--ram", "1MiB")
    assert done.code == 4
    assert "MiB are missing" in done.stderr


def test_list_json_names_family_task_and_path(martlet, monkeypatch, tmp_path, tiny_eva):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "martlet/models").mkdir(parents=True)
    (tmp_path / "martlet/models/mine").symlink_to(tiny_eva)
    entries = {e["name"]: e for e in json.loads(martlet("list", "--json").stdout)}
    assert entries["mine"]["family"] == "eva"
    assert entries["mine"]["task"] == "chat"
    assert entries["mine"]["origin"] == "local"
    assert "mine" in martlet("list").stdout


def test_a_damaged_folder_gives_6_and_list_says_so(martlet, monkeypatch, tmp_path, make_model):
    folder = make_model("eva")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = martlet("show", folder)
    assert done.code == 6
    assert "model.safetensors" in done.stderr
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    (tmp_path / "martlet/models").mkdir(parents=True)
    (tmp_path / "martlet/models/torn").symlink_to(folder)
    assert "torn cannot be loaded" in martlet("list").stderr


def test_doctor_json_has_the_facts_and_the_verdict(martlet):
    done = martlet("doctor", "--json")
    facts = json.loads(done.stdout)
    assert facts["cpu"]["num_cores"] >= 1
    assert 0 < facts["ram"]["available_bytes"] <= facts["ram"]["total_bytes"]
    assert facts["ram_read_bytes_per_second"] > 1e8
    assert facts["disk"]["free_bytes"] > 0
    assert [model["name"] for model in facts["models"]] == ["cpm1-mini", "cpm2-mini", "eva-mini"]
    assert facts["usable"] == (done.code == 0) == (not facts["problems"])


def test_doctor_finds_a_bundled_model_whose_bytes_have_changed(martlet, monkeypatch, make_model):
    folder = make_model("cpm1")
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    monkeypatch.setattr("martlet.hub.catalogue.resolve", lambda name: folder)
    done = martlet("doctor")
    assert done.code == 6
    assert "sha256" in done.stdout
    assert "problems: 3" in done.stdout


def test_the_first_problem_decides_the_suggestion_and_the_exit_code():
    report = doctor.Report()
    assert report.exit_code == 0
    report.add_problem("a", "do this", 6)
    report.add_problem("b", "do that", 3)
    assert (report.exit_code, report.suggestion) == (6, "do this")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0123, "12 ms"), (2.14, "2.1 s"), (200, "3 min 20 s"), (59.99, "60.0 s")],
)
def test_times_are_written_for_people(seconds, shown):
    assert duration(seconds) == shown
