import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

import martlet
from martlet.api.opening import open_model
from martlet.api.sampling import SamplingOptions
from martlet.engine.load_options import LoadOptions
from martlet.engine.loading import sampling_defaults
from martlet.engine.request import SamplingParams

SAMPLING = [
    "max_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "stop",
    "seed",
]


@pytest.fixture
def copy_of(tmp_path):
    def copy(folder: Path) -> Path:
        return Path(shutil.copytree(folder, tmp_path / "copy"))

    return copy


def _edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_sampling_keywords_are_the_sampling_parameters():
    assert list(SamplingOptions.__annotations__) == SAMPLING
    assert [field.name for field in dataclasses.fields(SamplingParams)] == SAMPLING


@pytest.mark.parametrize("method", ["fill", "write", "chat", "generate"])
@pytest.mark.parametrize("keyword", SAMPLING)
def test_every_method_takes_every_sampling_keyword(tiny_cpm1, method, keyword):
    model = martlet.load(tiny_cpm1, device="cpu")
    # A value that no keyword allows is refused by the keyword's own name.
    with pytest.raises(martlet.UsageError, match=f"^{keyword} is"):
        getattr(model, method)("天空", **{keyword: object()})


@pytest.mark.parametrize("method", ["fill", "write", "chat", "generate"])
def test_an_unknown_keyword_is_a_type_error(tiny_cpm1, method):
    model = martlet.load(tiny_cpm1, device="cpu")
    with pytest.raises(TypeError, match=r"'temprature'.*temperature, top_k"):
        getattr(model, method)("天空", temprature=1)


@pytest.mark.parametrize("text", [123, None, b"bytes", ["", 5]])
def test_what_is_no_text_is_refused(tiny_cpm1, tiny_cpm2, text):
    writer = martlet.load(tiny_cpm1, device="cpu")
    filler = martlet.load(tiny_cpm2, device="cpu")
    for call in (writer.write, writer.generate, filler.fill, filler.write):
        with pytest.raises(martlet.UsageError, match=r"must be a string|list of"):
            call(text)
    with pytest.raises(martlet.UsageError, match="must be a string"):
        writer.score(text, "天空")
    with pytest.raises(martlet.UsageError, match="must be a string"):
        writer.score_text(text)


def test_a_bad_value_is_refused_before_anything_is_computed(tiny_cpm1):
    model = martlet.load(tiny_cpm1, device="cpu")
    with pytest.raises(martlet.UsageError, match="top_p is 2"):
        model.write("天空", top_p=2, stream=True)


def test_the_plan_of_a_model_is_the_plan_it_is_loaded_by(tiny_cpm2):
    plan = martlet.plan(tiny_cpm2, device="cpu", num_threads=1)
    model = martlet.load(tiny_cpm2, device="cpu", num_threads=1)
    assert [p.placements for p in plan.phases] == [p.placements for p in model.plan.phases]
    assert model.plan.describe().startswith("all 5 blocks, 1.9 MiB, in RAM; computed on the CPU")


def test_the_planned_bytes_are_those_of_the_loaded_weights(tiny_cpm1, tiny_cpm2):
    for folder in (tiny_cpm1, tiny_cpm2):
        for quantize in (None, "int8", "none", "int4", "int4-g64-asym", "int8-g128"):
            model = martlet.load(folder, device="cpu", quantize=quantize)
            executor = model._model.generator.executor
            blocks = [executor.fixed()]
            blocks += [w for phase in ("encode", "prefill") for _, w in executor.blocks(phase)]
            nbytes = sum(weight.nbytes for block in blocks for weight in block.values())
            assert nbytes == model.plan.weight_bytes("ram"), (folder.name, quantize)


def test_int8_at_load_changes_the_output_a_little(tiny_cpm1):
    token_ids = [5, 6, 7, 8]
    exact = martlet.load(tiny_cpm1, device="cpu").logits(token_ids)
    rounded = martlet.load(tiny_cpm1, device="cpu", quantize="int8").logits(token_ids)
    error = (rounded - exact).norm() / exact.norm()
    # Rounding to 255 steps a row is off by a third of a percent a matrix; eight follow each other.
    assert 0 < error < 0.05


def test_int8_made_float_again_has_the_same_weights_and_about_the_same_output(tiny_cpm2):
    packed = martlet.load(tiny_cpm2, device="cpu")
    unpacked = martlet.load(tiny_cpm2, device="cpu", quantize="none")
    head = packed._model.generator.executor.fixed()["lm_head.weight"]
    plain = unpacked._model.generator.executor.fixed()["lm_head.weight"]
    assert torch.equal(head.dequantize(), plain)
    assert unpacked.plan.weight_bytes("ram") > 3 * packed.plan.weight_bytes("ram")
    scores = [model.score("天空是", "蔚蓝色").logprob for model in (packed, unpacked)]
    # The int8 product of one row is rounded to bfloat16, 2**-9 of its value.
    assert abs(scores[0] - scores[1]) < 0.02 * abs(scores[1])


def test_a_budget_that_is_too_small_names_what_is_missing_and_loads_nothing(tiny_cpm1):
    with pytest.raises(martlet.CapacityError, match=r"\d+ MiB are missing"):
        martlet.load(tiny_cpm1, device="cpu", ram="32MiB")


@pytest.mark.parametrize(
    "options",
    [
        {"device": "tpu"},
        {"quantize": "int3"},
        {"quantize": "int8-g32-asym"},
        {"gpu_memory": "lots"},
        {"ram": 0},
        {"num_threads": 0},
        {"num_threads": True},
    ],
)
def test_a_bad_option_is_refused_with_its_name(tiny_cpm1, options):
    with pytest.raises(martlet.UsageError, match=f"^{next(iter(options))} is "):
        martlet.load(tiny_cpm1, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_said_so(tiny_cpm1):
    with pytest.raises(martlet.UsageError, match="no GPU"):
        martlet.load(tiny_cpm1, device="cuda")
    assert martlet.load(tiny_cpm1, gpu_memory="6GiB").plan.device == "cpu"


def test_an_unknown_model_is_not_found():
    with pytest.raises(martlet.ModelNotFoundError, match="cpm1-mini"):
        martlet.load("cpm9-maxi")


def test_a_folder_without_a_manifest_is_told_to_convert(tmp_path):
    with pytest.raises(martlet.ModelNotFoundError, match="martlet convert"):
        martlet.load(tmp_path)


def _own(folder, name):
    """Put a changed file into the manifest."""
    path = folder / name
    manifest = json.loads((folder / "martlet.json").read_text())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest["files"][name] = {"size_bytes": path.stat().st_size, "sha256": digest}
    (folder / "martlet.json").write_text(json.dumps(manifest))


def test_another_models_vocabulary_is_refused(tiny_cpm2, tiny_eva, copy_of):
    folder = copy_of(tiny_cpm2)
    shutil.copy(tiny_eva / "vocab.txt", folder / "vocab.txt")
    with pytest.raises(martlet.ModelFileError, match="bytes, the manifest says"):
        martlet.load(folder, device="cpu")
    _own(folder, "vocab.txt")
    with pytest.raises(martlet.VocabularyError, match="30000"):
        martlet.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"n_embd": 64}, "has the shape"),
        ({"n_layer": 3}, "decoder.2"),
        ({"n_layer": 1}, "decoder.1"),
    ],
)
def test_a_configuration_of_other_weights_is_refused(tiny_cpm1, copy_of, changes, what):
    folder = copy_of(tiny_cpm1)
    _edit(folder / "config.json", **changes)
    _own(folder, "config.json")
    with pytest.raises(martlet.ModelFileError, match=what):
        martlet.load(folder, device="cpu")


def test_a_vocabulary_with_two_words_exchanged_is_refused(tiny_eva, copy_of):
    folder = copy_of(tiny_eva)
    lines = (folder / "vocab.txt").read_bytes().split(b"\n")
    lines[20_000], lines[20_001] = lines[20_001], lines[20_000]
    (folder / "vocab.txt").write_bytes(b"\n".join(lines))
    with pytest.raises(martlet.ModelFileError, match=r"vocab\.txt: sha256 is"):
        martlet.load(folder, device="cpu")


def test_defaults_come_from_the_model_then_from_the_task(make_model):
    generation = {"max_new_tokens": 7, "tasks": {"write": {"max_tokens": 4, "seed": 5}}}
    model = martlet.load(make_model("cpm1", generation=generation), device="cpu")
    model.write("天空")
    assert (model.last_stats.output_tokens, model.last_stats.seed) == (4, 5)
    model.write("天空", max_tokens=2, seed=6)
    assert (model.last_stats.output_tokens, model.last_stats.seed) == (2, 6)
    assert sampling_defaults(generation, "fill")[1]["max_tokens"] == 7
    assert sampling_defaults({"do_sample": False}, "fill")[1]["temperature"] == 0


def test_bad_defaults_of_a_model_are_its_own_fault(make_model):
    folder = make_model("cpm1", generation={"top_p": 7})
    with pytest.raises(martlet.ModelFileError, match=r"generation_config.json .*top_p is 7"):
        martlet.load(folder, device="cpu")


def test_the_input_limit_can_come_with_the_model(make_model):
    folder = make_model("eva", generation={"max_input_tokens": 40})
    assert open_model(folder).max_input_tokens == 40
    broken = make_model("eva", generation={"max_input_tokens": "many"})
    with pytest.raises(martlet.ModelFileError, match="max_input_tokens"):
        martlet.load(broken, device="cpu")


def test_last_stats_tell_how_it_went(tiny_cpm1):
    model = martlet.load(tiny_cpm1, device="cpu")
    assert model.last_stats is None
    with model.write("天空", max_tokens=9, stream=True) as pieces:
        next(pieces)
    assert model.last_stats is None  # it had not ended
    model.write("天空", max_tokens=9, seed=3)
    stats = model.last_stats
    assert stats.output_tokens == 9
    assert stats.tokens_per_second > 0
    assert stats.time_to_first_token_seconds > 0
    assert stats.seed == 3


def test_the_seed_that_was_drawn_repeats_the_text(tiny_cpm1):
    model = martlet.load(tiny_cpm1, device="cpu")
    text = model.write("天空", max_tokens=9)
    assert model.write("天空", max_tokens=9, seed=model.last_stats.seed) == text


def test_options_are_checked_as_a_value():
    assert LoadOptions(gpu_memory="1GiB").gpu_memory == 1 << 30
