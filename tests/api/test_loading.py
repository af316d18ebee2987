"""Weights that take another format while a model is loaded."""

import pytest
import torch

import martlet
from martlet.api.loading import Card, plan_for_card
from martlet.api.opening import open_model
from martlet.checkpoint.planned import PlannedBlock, PlannedWeight
from martlet.checkpoint.writer import StoreContents, StoreWriter
from martlet.compression.nearest import quantize_matrix
from martlet.compression.requantize import in_format
from martlet.engine.load_options import LoadOptions
from martlet.memory.executor import ResidentExecutor
from martlet.models.config import load_architecture
from martlet.quantization.formats import INT4, INT8

CPU = torch.device("cpu")
TOKEN_IDS = [5, 68, 7, 800, 99, 10, 1100, 12]
PROSE = "次日清晨，天降大雪，众人都到堂前来，只见那老汉推开门，大吃一惊。"


class _Dequantized:
    """The floats that the integers of a folder stand for, once they are int4."""

    def __init__(self, folder):
        self._folder = folder
        self._kinds = {
            spec.name: {tensor.name: tensor.kind for tensor in spec.tensors}
            for spec in folder.architecture.block_specs()
        }

    def block(self, name):
        return {
            key: weight
            if self._kinds[name][key] == "other"
            else in_format(weight, INT4, key, CPU).dequantize()
            for key, weight in self._folder.stored_blocks().block(name).items()
        }


def _dequantized(name):
    """The model with float weights that int4 has rounded."""
    model = martlet.load(name, device="cpu", quantize="none")
    source = _Dequantized(open_model(name))
    model.generator.executor = ResidentExecutor(model.plan, source, CPU, torch.float32)
    return model


@pytest.fixture(scope="module")
def int4_models():
    names = ("cpm1-mini", "cpm2-mini", "eva-mini")
    return {name: martlet.load(name, device="cpu", quantize="int4") for name in names}


def test_int4_computes_with_the_weights_that_its_integers_stand_for(int4_models):
    logits = int4_models["cpm1-mini"].logits(TOKEN_IDS)
    expected = _dequantized("cpm1-mini").logits(TOKEN_IDS)
    assert (logits - expected).norm() / expected.norm() < 0.01
    stored = martlet.load("cpm1-mini", device="cpu").logits(TOKEN_IDS)
    assert (logits - stored).norm() / stored.norm() > 0.02, "4 bits are not what is stored"


@pytest.mark.parametrize("name", ["cpm2-mini", "eva-mini"])
def test_an_encoder_and_its_decoder_compute_with_int4(int4_models, name):
    score, expected = (
        model.score(PROSE[:10], PROSE[10:]).logprob
        for model in (int4_models[name], _dequantized(name))
    )
    assert score == pytest.approx(expected, rel=0.01)


def test_models_of_int4_still_know_their_language(int4_models):
    stored = martlet.load("cpm1-mini", device="cpu").score_text(PROSE)
    rounded = int4_models["cpm1-mini"].score_text(PROSE)
    # Random integers would cost 15 bits a token; rounding to nearest costs some percent.
    assert rounded.bits_per_character < 1.15 * stored.bits_per_character
    filled = int4_models["cpm2-mini"].fill("次日清晨，__，众人都到堂前来。", seed=1)
    assert filled.blanks[0].closed
    assert filled.blanks[0].text


def test_the_plan_for_a_card_counts_a_little_more_than_half_of_int8():
    card = Card(memory="6GiB", bandwidth="150GB/s", pcie_bandwidth="12GB/s")
    plans = {
        quantize: plan_for_card("cpm1-mini", card, quantize=quantize)
        for quantize in ("int8", "int4", "int4-g128")
    }
    int8, int4, wide = (plan.weight_bytes("gpu") for plan in plans.values())
    assert 0.55 < int4 / int8 < 0.62
    assert 0.5 < wide / int8 < int4 / int8
    tokens = {name: plan.seconds_per_token for name, plan in plans.items()}
    assert tokens["int4-g128"] < tokens["int4"] < tokens["int8"]
    assert plans["int4"].prediction.work.bytes_per_weight == pytest.approx(0.5625)


def test_the_message_of_too_little_memory_names_int4_while_that_helps():
    for quantize, is_named in ((None, True), ("int4", False)):
        with pytest.raises(martlet.CapacityError) as caught:
            martlet.plan("cpm1-mini", device="cpu", ram="32MiB", quantize=quantize)
        assert ("--quantize int4" in str(caught.value)) == is_named


def test_a_folder_that_holds_groups_is_loaded_as_it_is_or_as_asked(make_model):
    folder = make_model("cpm1", quantize="int4-g64")
    token_ids = TOKEN_IDS[:4]
    stored = martlet.load(folder, device="cpu")
    same = martlet.load(folder, device="cpu", quantize="int4")
    plain = martlet.load(folder, device="cpu", quantize="none")
    bytes_as_stored = stored.plan.weight_bytes("ram")
    assert same.plan.weight_bytes("ram") == bytes_as_stored
    assert torch.equal(same.logits(token_ids), stored.logits(token_ids))
    error = (plain.logits(token_ids) - stored.logits(token_ids)).norm()
    assert error / plain.logits(token_ids).norm() < 0.01
    wider = martlet.load(folder, device="cpu", quantize="int8")
    assert wider.plan.weight_bytes("ram") > 1.5 * bytes_as_stored
    error = (wider.logits(token_ids) - stored.logits(token_ids)).norm()
    assert error / plain.logits(token_ids).norm() < 0.05


def test_the_planned_parts_of_a_gpu_are_those_of_the_loaded_format(make_model):
    folder = open_model(make_model("cpm2", quantize="int4-g32"))
    formats = {}
    for quantize in (None, "int8", "int4-g128"):
        options = LoadOptions(device="cpu", quantize=quantize)
        forms = folder.plan(options).forms
        spec = next(spec for spec in forms.specs if spec.name == "decoder.1")
        tensor = next(t for t in spec.tensors if t.name.endswith("wo.weight"))
        formats[quantize] = forms.format_of(spec, tensor).name
    assert formats == {None: "int4-g32", "int8": "int8", "int4-g128": "int4-g128"}


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", ["int4", "int4-g128-asym", "int8-g64"])
def test_a_gpu_quantises_what_it_computes_with(quantize, make_model):
    folder = make_model("cpm1")
    token_ids = [5, 68, 7, 800, 99, 10]
    on_gpu, on_cpu = (
        martlet.load(folder, device=device, quantize=quantize).logits(token_ids)
        for device in ("cuda", "cpu")
    )
    # float16 activations over two layers; where two ranges are as good, either may be taken.
    assert (on_gpu - on_cpu).norm() / on_cpu.norm() < 0.03


@pytest.mark.gpu
def test_int8_that_is_stored_becomes_int4_on_the_gpu_in_the_bytes_that_are_planned():
    before_bytes = torch.cuda.memory_allocated()
    model = martlet.load("cpm2-mini", device="cuda", quantize="int4")
    weights_bytes = model.plan.weight_bytes("gpu") + model.plan.slots_bytes
    # The allocator rounds up to 512 bytes.
    assert 0 <= torch.cuda.memory_allocated() - before_bytes - weights_bytes < 1 << 20
    score = model.score(PROSE[:10], PROSE[10:]).logprob
    on_cpu = martlet.load("cpm2-mini", device="cpu", quantize="int4")
    assert score == pytest.approx(on_cpu.score(PROSE[:10], PROSE[10:]).logprob, rel=0.02)


@pytest.mark.parametrize("format", [INT8, INT4], ids=lambda format: format.name)
def test_a_table_of_positions_that_is_integers_is_refused(tmp_path, format):
    config = {"model_type": "gpt2", "vocab_size": 50, "n_positions": 8, "n_embd": 32}
    config |= {"n_layer": 1, "n_head": 2}
    blocks = [
        PlannedBlock(
            spec.name,
            spec.prefix,
            tuple(
                PlannedWeight(
                    spec.prefix + tensor.name,
                    tensor.shape,
                    format if tensor.name.endswith("wpe.weight") else torch.float32,
                )
                for tensor in spec.tensors
            ),
        )
        for spec in load_architecture(config).block_specs()
    ]
    contents = StoreContents(tuple(blocks), config, "gpt2", tokenizer=None, generation={})
    with StoreWriter(tmp_path / "odd", contents) as writer:
        for block in blocks:
            for planned in block.weights:
                weight = torch.ones(planned.shape)
                is_table = planned.format is not None
                writer.write_weight(
                    planned.name, quantize_matrix(weight, format) if is_table else weight
                )
    with pytest.raises(martlet.ModelFileError, match=f"wpe.weight is {format.name}, which only"):
        martlet.load(tmp_path / "odd")
