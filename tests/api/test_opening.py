"""Folders as the Hugging Face hub has them are models: nothing is converted, nothing written."""

import json

import pytest
import safetensors.torch
import torch

import martlet
from martlet.api.opening import open_files, open_model
from martlet.models.config import load_architecture

CONFIG = {
    "model_type": "gpt2",
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": 29,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 28,
    "eos_token_id": 28,
}
TOKEN_IDS = [3, 1, 4, 1, 5, 9, 2, 6]


def vocabulary():
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = [*"abcdefghijklmnopqrstuvwxyz", " ", "."]
    tokens = {letter: number for number, letter in enumerate([*letters, "<|endoftext|>"])}
    tokenizer = Tokenizer(models.WordLevel(tokens, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.add_special_tokens(["<|endoftext|>"])
    return tokenizer


def write_hub_folder(folder, config=CONFIG, dtype=torch.bfloat16, shards=2, extra=None):
    """A folder in the layout of the hub, of a GPT-2 with random weights."""
    folder.mkdir()
    random = torch.Generator().manual_seed(7)
    architecture = load_architecture(config)
    state = {}
    for block in architecture.block_specs():
        for spec in block.tensors:
            name = block.prefix + spec.name
            weight = torch.randn(spec.shape, generator=random) * 0.3
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                weight = torch.ones(spec.shape)
            if architecture.checkpoint_tensor(name).transposed:
                weight = weight.T.contiguous()
            state[name] = weight.to(dtype)
    names = list(state)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: state[name] for name in names[shard::shards]}
        safetensors.torch.save_file(part, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (folder / "config.json").write_text(json.dumps({**config, **(extra or {})}))
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.5, "_x": 1}))
    vocabulary().save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def hub_folder(tmp_path_factory):
    return write_hub_folder(
        tmp_path_factory.mktemp("hub") / "tiny", extra={"torch_dtype": "bfloat16"}
    )


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
def test_a_card_computes_in_the_type_of_the_checkpoint(tmp_path, dtype, stated, expected):
    folder = write_hub_folder(tmp_path / "m", dtype=dtype, extra={"dtype": stated})
    opened = open_model(folder)
    assert opened.compute_dtype((8, 0)) == expected
    older = torch.float32 if expected == torch.bfloat16 else torch.float16
    assert opened.compute_dtype((7, 5)) == older
    assert opened.compute_dtype(None) == torch.float32


def test_progress_ends_with_all_bytes_of_the_checkpoint(hub_folder):
    seen = []
    martlet.load(hub_folder, device="cpu", progress=lambda *state: seen.append(state))
    assert seen[-1][0] == seen[-1][1] == open_files(hub_folder).nbytes
    assert len(seen) == sum(len(b.tensors) for b in load_architecture(CONFIG).block_specs())


def test_a_folder_of_pickles_is_refused_with_the_way_out(tmp_path):
    folder = write_hub_folder(tmp_path / "m")
    (folder / "model.safetensors.index.json").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(martlet.ModelFileError, match=r"pickle.*martlet convert"):
        martlet.load(folder, device="cpu")


def test_code_that_comes_with_a_folder_is_never_run(tmp_path):
    extra = {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    folder = write_hub_folder(tmp_path / "m", extra=extra)
    (folder / "modeling_evil.py").write_text("raise SystemExit('ran')")
    martlet.load(folder, device="cpu")


def test_a_model_type_without_a_class_of_ours_is_named(tmp_path):
    folder = write_hub_folder(tmp_path / "m", extra={"model_type": "mamba"})
    with pytest.raises(martlet.ModelFileError, match=r"mamba.*supported are .*gpt2"):
        martlet.load(folder, device="cpu")


def test_another_way_of_packing_is_refused_by_name_with_a_way_out(tmp_path):
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    folder = write_hub_folder(tmp_path / "m", extra={"quantization_config": quantization})
    with pytest.raises(martlet.ModelFileError, match=r"bitsandbytes.*float checkpoint"):
        martlet.load(folder, device="cpu")


def test_a_folder_without_a_vocabulary_says_so(tmp_path):
    folder = write_hub_folder(tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(martlet.VocabularyError, match="no tokenizer"):
        martlet.load(folder, device="cpu")


def test_a_folder_with_neither_manifest_nor_config_is_no_model(tmp_path):
    with pytest.raises(martlet.ModelNotFoundError):
        martlet.load(tmp_path, device="cpu")
