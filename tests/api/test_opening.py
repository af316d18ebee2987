"""Folders as the Hugging Face hub has them are models: nothing is converted, nothing written."""

import json

import pytest
import torch

import martlet
from martlet.api.opening import open_files, open_model
from martlet.engine.loaded_weights import LoadedWeights

TOKEN_IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def hub_folder(make_hub_folder):
    return make_hub_folder(config={"torch_dtype": "bfloat16"})


@pytest.fixture(scope="module")
def converted(hub_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("own") / "floats"
    from martlet.conversion.convert import convert

    convert(hub_folder, folder)
    return folder


def test_a_hub_folder_is_int8_unless_asked_otherwise(hub_folder, converted):
    model = martlet.load(hub_folder, device="cpu")
    assert model.plan.weight_bytes("ram") < martlet.plan(converted, device="cpu").weight_bytes(
        "ram"
    )
    assert torch.equal(
        model.logits(TOKEN_IDS),
        martlet.load(converted, device="cpu", quantize="int8").logits(TOKEN_IDS),
    )


@pytest.mark.parametrize("quantize", ["none", "int4", "int8-g64"])
def test_a_hub_folder_takes_every_format_and_none(hub_folder, converted, quantize):
    ours, theirs = (
        martlet.load(folder, device="cpu", quantize=quantize).logits(TOKEN_IDS)
        for folder in (hub_folder, converted)
    )
    assert torch.equal(ours, theirs)


def test_a_hub_folder_writes_text_with_its_own_tokenizer_and_defaults(hub_folder):
    model = martlet.load(hub_folder, device="cpu")
    assert model.write("abc", max_tokens=4, temperature=0)
    assert open_model(hub_folder).files.generation == {"temperature": 0.5}


def test_the_plan_of_a_hub_folder_counts_integers(hub_folder):
    int8 = martlet.plan(hub_folder, device="cpu").weight_bytes("ram")
    floats = martlet.plan(hub_folder, device="cpu", quantize="none").weight_bytes("ram")
    assert 2.5 < floats / int8 < 4


def test_nothing_is_written_into_a_hub_folder(hub_folder):
    before = {path: path.stat().st_mtime_ns for path in hub_folder.iterdir()}
    martlet.load(hub_folder, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in hub_folder.iterdir()} == before


def test_quantize_saves_the_packed_form_of_a_hub_folder(hub_folder, tmp_path):
    report = martlet.quantize(
        hub_folder, tmp_path / "packed", method="nearest", format="int8", device="cpu"
    )
    assert report.family == "gpt2"
    packed = open_files(tmp_path / "packed")
    assert (packed.quantize, packed.usual_quantize) == ("int8", None)
    # Computed with as it lies in the file: nothing is made again, nothing copied.
    opened = open_model(tmp_path / "packed")
    loaded = LoadedWeights(opened.forms(None), torch.float32).block("decoder.1")
    stored = opened.files.weight("decoder.1", "mlp.c_fc.weight")
    assert loaded["mlp.c_fc.weight"].data.data_ptr() == stored.data.data_ptr()
    saved = martlet.load(tmp_path / "packed", device="cpu")
    assert torch.equal(
        saved.logits(TOKEN_IDS), martlet.load(hub_folder, device="cpu").logits(TOKEN_IDS)
    )


@pytest.mark.parametrize(
    ("dtype", "stated", "expected"),
    [
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, "bfloat16", torch.bfloat16),
        (torch.float16, "float16", torch.float16),
        (torch.float32, None, torch.float16),
    ],
)
def test_a_card_computes_in_the_type_of_the_checkpoint(make_hub_folder, dtype, stated, expected):
    folder = make_hub_folder(dtype=dtype, config={"dtype": stated})
    opened = open_model(folder)
    assert opened.compute_dtype((8, 0)) == expected
    older = torch.float32 if expected == torch.bfloat16 else torch.float16
    assert opened.compute_dtype((7, 5)) == older
    assert opened.compute_dtype(None) == torch.float32


def test_progress_ends_with_all_bytes_of_the_checkpoint(hub_folder):
    seen = []
    martlet.load(hub_folder, device="cpu", progress=lambda *state: seen.append(state))
    assert seen[-1][0] == seen[-1][1] == open_files(hub_folder).nbytes
    assert len(seen) == sum(
        len(b.tensors) for b in open_model(hub_folder).architecture.block_specs()
    )


def test_a_folder_of_pickles_is_refused_with_the_way_out(make_hub_folder):
    folder = make_hub_folder()
    (folder / "model.safetensors.index.json").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(martlet.ModelFileError, match=r"pickle.*martlet convert"):
        martlet.load(folder, device="cpu")


def test_code_that_comes_with_a_folder_is_never_run(make_hub_folder):
    extra = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    folder = make_hub_folder(config=extra)
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    martlet.load(folder, device="cpu")


def test_a_model_type_without_a_class_of_ours_is_named(make_hub_folder):
    folder = make_hub_folder()
    (folder / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(martlet.ModelFileError, match=r"mamba.*supported are .*gpt2"):
        martlet.load(folder, device="cpu")


def test_another_way_of_packing_is_refused_by_name_with_a_way_out(make_hub_folder):
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = make_hub_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    with pytest.raises(martlet.ModelFileError, match=r"bitsandbytes.*float checkpoint"):
        martlet.load(folder, device="cpu")


def test_a_folder_without_a_vocabulary_says_so(make_hub_folder):
    folder = make_hub_folder()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(martlet.VocabularyError, match="no tokenizer"):
        martlet.load(folder, device="cpu")


def test_a_folder_with_neither_manifest_nor_config_is_no_model(tmp_path):
    with pytest.raises(martlet.ModelNotFoundError):
        martlet.load(tmp_path, device="cpu")


def test_a_family_that_nobody_here_computes_is_named(make_model):
    folder = make_model("gpt2", config={"vocab_size": 40}, tokenizer=("cpm1", {}))
    manifest = json.loads((folder / "martlet.json").read_text())
    (folder / "martlet.json").write_text(json.dumps({**manifest, "family": "hyena-2"}))
    with pytest.raises(martlet.ModelFileError, match=r"family is 'hyena-2', .*knows .*gpt2"):
        open_model(folder)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("quantize", [None, "int4", "int8-g64", "none"])
def test_a_card_makes_of_a_hub_folder_what_a_processor_makes(make_hub_folder, dtype, quantize):
    folder = make_hub_folder(dtype=dtype)
    here, there = (
        martlet.load(folder, device=device, quantize=quantize).logits(TOKEN_IDS).cpu()
        for device in ("cpu", "cuda")
    )
    assert (here - there).abs().max() < 0.05 * here.std()  # half precision on the card
