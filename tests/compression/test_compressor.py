import pytest
import torch

from martlet.compression.compress_block import METHODS, Method
from martlet.compression.compressor import Compressor, Placement
from martlet.compression.recipe import Recipe
from martlet.compression.walk import Walk
from martlet.errors import UsageError
from martlet.models.architecture import FIXED
from martlet.quantization.scheme import GroupedTensor, QuantizedTensor

CPU = Placement(torch.device("cpu"), torch.float32)
RECIPE = Recipe.parse("int4-g32", head="int8-g32")
NAMES = ["gpt2", "llama", "t5", "t5-tied"]
LENGTHS = [20, 30, 11, 30, 25, 8, 30, 30]


def _compressor(model, samples, method="gptq", recipe=RECIPE):
    return Compressor(model.architecture, model, recipe, Method(method), samples, CPU)


def _dense(weights):
    return {
        name: weight if isinstance(weight, torch.Tensor) else weight.dequantize()
        for name, weight in weights.items()
    }


def _logits(architecture, blocks, samples):
    walk = Walk(architecture, samples, torch.device("cpu"), torch.float32, 4)
    for stack in ("encoder", "decoder") if architecture.has_encoder else ("decoder",):
        walk.enter(blocks[FIXED], stack)
        for index in range(architecture.num_blocks(stack)):
            walk.run(stack, index, blocks[f"{stack}.{index}"])
        if stack == "decoder":
            return torch.cat(
                [
                    architecture.head(blocks[FIXED], stack, hidden)[batch.is_real(stack)]
                    for batch, hidden in zip(walk.batches, walk.inputs(), strict=True)
                ]
            )
        walk.leave(blocks[FIXED], stack)
    raise AssertionError


@pytest.mark.parametrize("name", NAMES)
def test_every_matrix_takes_the_format_of_the_recipe_and_gets_a_line_in_the_report(
    name, tiny_model, random_samples
):
    model = tiny_model(name)
    specs = model.architecture.block_specs()
    samples = random_samples(model.architecture, LENGTHS)
    done = list(_compressor(model, samples, "scaled+gptq").blocks())
    assert {block.spec.name for block in done} == {spec.name for spec in specs}
    for block in done:
        reported = {layer.name: layer for layer in block.layers}
        for tensor in block.spec.tensors:
            weight, full_name = block.weights[tensor.name], block.spec.prefix + tensor.name
            format = RECIPE.format_of(full_name, tensor, block.spec, specs)
            assert tuple(weight.shape) == tensor.shape
            if format is None:
                assert isinstance(weight, torch.Tensor)
                assert full_name not in reported
            else:
                assert weight.format == format
                assert reported[full_name].format == format.name
        assert [w.name for w in block.planned.weights] == [
            block.spec.prefix + t.name for t in block.spec.tensors
        ]


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_calibrated_methods_keep_logits_nearer_to_those_of_the_float_model(
    name, tiny_model, random_samples
):
    model = tiny_model(name)
    seen = random_samples(model.architecture, LENGTHS * 4)
    expected = _logits(model.architecture, model.blocks, seen)
    errors = {}
    for method in METHODS:
        done = _compressor(model, seen, method).blocks()
        blocks = {block.spec.name: _dense(block.weights) for block in done}
        errors[method] = float((_logits(model.architecture, blocks, seen) - expected).norm())
    assert errors["gptq"] < 0.97 * errors["nearest"]
    assert errors["scaled+gptq"] < errors["nearest"]
    assert errors["scaled"] < 1.02 * errors["nearest"]


def test_errors_of_the_report_get_smaller(tiny_model, random_samples):
    model = tiny_model("t5")
    samples = random_samples(model.architecture, LENGTHS * 4)
    for block in _compressor(model, samples).blocks():
        for layer in block.layers:
            assert 0 < layer.error_after < layer.error_before < 1
        if block.spec.name != FIXED:
            assert 0 < block.output_error < 0.3


@pytest.mark.parametrize("name", ["gpt2", "t5-tied"])
def test_a_table_that_is_tied_is_compressed_for_the_logits_too(name, tiny_model, random_samples):
    model = tiny_model(name)
    samples = random_samples(model.architecture, LENGTHS * 4)
    *_, fixed = _compressor(model, samples).blocks()
    *_, nearest = _compressor(model, samples, "nearest").blocks()
    (layer,), (rounded,) = fixed.layers, nearest.layers
    assert layer.name == rounded.name
    table = layer.name
    assert layer.error_after < 0.9 * layer.error_before
    # For that its own weights have moved a little.
    exact = model.blocks[FIXED][table]
    errors = [float((b.weights[table].dequantize() - exact).norm()) for b in (nearest, fixed)]
    assert errors[0] < errors[1] < 1.5 * errors[0]


def test_what_was_finished_before_is_taken_over_and_the_rest_comes_out_the_same(
    tiny_model, random_samples
):
    model = tiny_model("t5")
    samples = random_samples(model.architecture, LENGTHS)
    whole = {block.spec.name: block for block in _compressor(model, samples).blocks()}
    kept = {name: whole[name] for name in ("encoder.0", "encoder.1", "decoder.0")}
    again = {b.spec.name: b for b in _compressor(model, samples).blocks(kept.get)}
    assert again["decoder.0"] is whole["decoder.0"]
    for name in ("decoder.1", FIXED):
        for key, weight in whole[name].weights.items():
            other = again[name].weights[key]
            if isinstance(weight, GroupedTensor):
                assert torch.equal(weight.data, other.data)
                assert torch.equal(weight.scale, other.scale)
            else:
                assert torch.equal(weight, other)


@pytest.mark.parametrize("format", ["int8", "int4-g32-asym"])
def test_matrices_in_pieces_of_rows_come_out_as_they_would_whole(
    format, tiny_model, random_samples, monkeypatch
):
    model = tiny_model("gpt2")
    samples = random_samples(model.architecture, LENGTHS)
    recipe = Recipe.parse(format)
    results = []
    for elements in (1 << 25, 32 * 7):
        monkeypatch.setattr("martlet.compression.compress_block.PIECE_ELEMENTS", elements)
        results.append(next(_compressor(model, samples, "scaled", recipe).blocks()))
    whole, pieces = results
    for name, weight in whole.weights.items():
        if not isinstance(weight, torch.Tensor):
            assert torch.equal(weight.dequantize(), pieces.weights[name].dequantize())
    for layer, other in zip(whole.layers, pieces.layers, strict=True):
        assert layer.error_after == pytest.approx(other.error_after, rel=1e-4)


def test_few_rows_are_believed_less():
    method = Method("gptq")
    assert method.damping_for(640, 640) > 1
    assert method.damping_for(640, 64_000) < 0.07


def test_nearest_needs_no_samples_and_reports_errors_of_weights(tiny_model):
    model = tiny_model("llama")
    for block in _compressor(model, [], "nearest").blocks():
        assert block.output_error is None
        assert all(0 < layer.error_after <= layer.error_before for layer in block.layers)


def test_a_rule_may_leave_a_matrix_as_it_was(tiny_model, random_samples):
    model = tiny_model("gpt2")
    recipe = Recipe.parse("int8", rules=["*.mlp.c_fc.weight=none"])
    samples = random_samples(model.architecture, LENGTHS)
    blocks = {b.spec.name: b for b in _compressor(model, samples, recipe=recipe).blocks()}
    assert (
        blocks["decoder.0"].weights["mlp.c_fc.weight"]
        is model.block("decoder.0")["mlp.c_fc.weight"]
    )
    assert isinstance(blocks["decoder.0"].weights["attn.c_attn.weight"], QuantizedTensor)


def test_half_types_are_kept_where_weights_stay_floats(tiny_model, random_samples):
    model = tiny_model("llama").to(torch.float16)
    samples = random_samples(model.architecture, LENGTHS)
    for block in _compressor(model, samples, "scaled").blocks():
        floats = [w for w in block.weights.values() if isinstance(w, torch.Tensor)]
        assert {weight.dtype for weight in floats} == {torch.float16}


def test_methods_that_calibrate_need_samples(tiny_model):
    model = tiny_model("gpt2")
    with pytest.raises(UsageError, match="--calibration"):
        _compressor(model, [])
    with pytest.raises(UsageError, match="nearest, gptq, scaled"):
        Method("awq")


def test_integers_are_not_compressed_again(tiny_model, random_samples):
    model = tiny_model("gpt2")
    samples = random_samples(model.architecture, LENGTHS)
    (first, *_) = _compressor(model, samples).blocks()
    model.blocks["decoder.0"] = first.weights
    with pytest.raises(UsageError, match="int4-g32 already"):
        list(_compressor(model, samples).blocks())
