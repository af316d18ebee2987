import json

import pytest

import martlet as martlet_package
from martlet.cli import doctor
from martlet.cli.output import duration
from martlet.compression.recipe import Recipe
from martlet.device.size import format_bytes
from martlet.kernels.cpu.grouped_linear import find_kernel


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


def test_show_tells_the_shares_of_formats_and_how_they_came_to_be(martlet, tiny_cpm1, tmp_path):
    folder = tmp_path / "mixed"
    recipe = Recipe.parse("int4-g64-asym", embedding="int8")
    martlet_package.convert(tiny_cpm1, folder, quantize=recipe)
    facts = json.loads(martlet("show", folder, "--json").stdout)
    by_name = {entry["format"]: entry for entry in facts["formats"]}
    assert list(by_name) == ["int8", "int4-g64-asym", "float32"]
    assert by_name["int8"]["tensors"] == 1
    assert by_name["int8"]["nbytes"] == 30000 * (32 + 4)
    assert sum(entry["parameters"] for entry in by_name.values()) == facts["parameters"]
    nbytes = sum(entry["nbytes"] for entry in by_name.values())
    assert facts["bits_per_weight"] == pytest.approx(8 * nbytes / facts["parameters"])
    assert facts["compression"]["recipe"] == {"default": "int4-g64-asym", "embedding": "int8"}
    shown = martlet("show", folder).stdout
    assert f"quantize int4, {facts['bits_per_weight']:.2f} bits a weight" in shown
    assert f"int8 {100 * by_name['int8']['parameters'] / facts['parameters']:.2f} % (1 ten" in shown
    assert 'recipe: {"default": "int4-g64-asym", "embedding": "int8"}' in shown


def test_a_plan_counts_the_bytes_of_an_int8_cache(martlet, tiny_cpm2):
    arguments = ("plan", tiny_cpm2, "--slots", "16", "--device", "cpu")
    floats = json.loads(martlet(*arguments, "--json").stdout)
    int8 = json.loads(martlet(*arguments, "--kv-cache", "int8", "--json").stdout)
    assert (floats["kv_cache"], int8["kv_cache"]) == ("none", "int8")
    # float32, and heads of 16: a byte each and two for the scale
    assert int8["kv_cache_bytes"] < 0.4 * floats["kv_cache_bytes"]
    assert "KV cache int8 of 16 x" in martlet(*arguments, "--kv-cache", "int8").stdout
    assert "KV cache of 16 x" in martlet(*arguments).stdout


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


def test_plan_for_people_has_a_row_a_stack_and_the_total(martlet, tiny_cpm2):
    shown = martlet("plan", tiny_cpm2).stdout
    plan = martlet_package.plan(tiny_cpm2)
    for stack in ("fixed  ", "encoder  ", "decoder  "):
        assert f"\n{stack}" in shown
    assert f"RAM: {format_bytes(plan.total_bytes('ram'))} of" in shown
    assert plan.describe() in shown


def test_the_plan_verb_shows_what_serving_costs(martlet, tiny_cpm2):
    texts = ("--slots", "4", "--context", "100")
    shown = martlet("plan", tiny_cpm2, "--device", "cpu", *texts).stdout
    assert "KV cache of 4 x 100 tokens" in shown
    card = (*CARD, "--gpu-memory", "2GiB", "--slots", "auto")
    facts = json.loads(martlet("plan", tiny_cpm2, *card, "--json").stdout)
    assert (facts["device"], facts["num_texts"]) == ("cuda", 16)
    for value in ("0", "257", "many"):
        refused = martlet("plan", tiny_cpm2, "--slots", value)
        assert refused.code == 2
        assert "--slots" in refused.stderr
        assert "auto" in refused.stderr


CARD = ("--gpu-bandwidth", "150GB/s", "--pcie-bandwidth", "10GB/s", "--gpu-flops", "4T")


def test_a_card_that_is_not_here_can_be_planned_for(martlet, tiny_cpm2):
    def planned(memory):
        done = martlet("plan", tiny_cpm2, "--gpu-memory", memory, "--json", *CARD)
        return json.loads(done.stdout)

    plan = planned("4GiB")
    assert plan["device"] == "cuda"
    assert plan["budget"]["gpu_bytes"] == 4 << 30
    assert plan["num_slots"] == 0
    assert plan["predicted_for"]["pcie_bytes_per_second"] == 10e9
    # The decoder and the output matrix are read for each token, an embedding is not.
    blocks = {p["block"]: p["nbytes"] for p in plan["phases"]["decode"]}
    decoder_bytes = sum(size for name, size in blocks.items() if name.startswith("decoder"))
    head_bytes = 26240 * (32 + 4)  # int8 and a scale a row
    block_seconds = 2 * plan["predicted_for"]["block_seconds"]
    read_bytes = (plan["seconds_per_token"] - block_seconds) * 150e9
    assert decoder_bytes + head_bytes / 2 < read_bytes < decoder_bytes + 1.5 * head_bytes
    assert plan["time_to_first_token_seconds"] > 0


def test_without_the_rate_of_products_the_first_token_is_not_predicted(martlet, tiny_cpm1):
    done = martlet("plan", tiny_cpm1, "--gpu-memory", "4GiB", *CARD[:4])
    assert "tokens/s" in done.stdout
    assert "first token" not in done.stdout
    assert "first token" in martlet("plan", tiny_cpm1, "--gpu-memory", "4GiB", *CARD).stdout


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (CARD, "give --gpu-memory, --gpu-bandwidth and --pcie-bandwidth together"),
        (("--gpu-memory", "4GiB", *CARD[:2]), "--pcie-bandwidth together"),
        (("--gpu-memory", "4GiB", "--device", "cpu", *CARD), "exclude each other"),
        (("--gpu-bandwidth", "quick"), "--gpu-bandwidth is 'quick'"),
        (("--gpu-flops", "4.4"), "--gpu-flops is '4.4'"),
    ],
)
def test_half_a_description_of_a_card_gives_2(martlet, tiny_cpm1, flags, says):
    done = martlet("plan", tiny_cpm1, *flags)
    assert done.code == 2
    assert says in done.stderr


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


def test_doctor_says_why_products_with_4_bits_are_slow_on_this_processor(martlet, monkeypatch):
    monkeypatch.setenv("MARTLET_NATIVE", "0")
    find_kernel.cache_clear()
    try:
        lines = martlet("doctor").stdout.splitlines()
    finally:
        find_kernel.cache_clear()
    assert "int4 on CPU   float tiles, slow: switched off by MARTLET_NATIVE=0" in lines


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


def test_show_describes_a_folder_as_the_hub_has_it(martlet, make_hub_folder):
    facts = json.loads(martlet("show", make_hub_folder(), "--json").stdout)
    assert (facts["family"], facts["quantize"]) == ("gpt2", "none")
    assert facts["bits_per_weight"] == 16
    assert facts["weight_bytes"] == 2 * facts["parameters"]
    assert sum(block["nbytes"] for block in facts["blocks"]) == facts["weight_bytes"]
    assert facts["tokenizer"] == {"kind": "huggingface", "files": ["tokenizer.json"]}
    assert facts["config"]["n_embd"] == 32
