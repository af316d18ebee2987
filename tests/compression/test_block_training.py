"""A block whose integers are trained comes nearer to the float block, and never farther from it."""

import pytest
import torch

from martlet.compression.block_training import BlockSettings, BlockTask, train_block
from martlet.compression.nearest import quantize_matrix
from martlet.compression.walk import Walk
from martlet.quantization.formats import parse_format

CPU = torch.device("cpu")
FORMAT = parse_format("int4-g32")
SETTINGS = BlockSettings(iterations=48, rounding_rate=0.02, scale_rate=2e-3, seed=5)


def _rounded(model, name):
    (spec,) = [spec for spec in model.architecture.block_specs() if spec.name == name]
    linears = {tensor.name for tensor in spec.tensors if tensor.kind == "linear"}
    weights = {
        key: quantize_matrix(weight, FORMAT) if key in linears else weight
        for key, weight in model.block(name).items()
    }
    return weights, {key: model.block(name)[key] for key in linears}


def _task(model, samples, num_held_out=2):
    walk = Walk(model.architecture, samples, CPU, torch.float32, 2)
    if model.architecture.has_encoder:
        walk.enter(model.block("fixed"), "encoder")
        walk.leave(model.block("fixed"), "encoder")
    walk.enter(model.block("fixed"), "decoder")
    targets = walk.run("decoder", 0, model.block("decoder.0"), keep=False)
    weights, latents = _rounded(model, "decoder.0")
    return BlockTask(walk, "decoder", 0, weights, latents, targets, num_held_out)


@pytest.fixture(scope="module", params=["gpt2", "llama", "t5"])
def task(request, tiny_model, random_samples):
    model = tiny_model(request.param)
    return _task(model, random_samples(model.architecture, [14, 20, 17, 12] * 4))


def _distance(task, weights):
    """The error of the stored weights on the held-out batches, by a run of its own."""
    dense = {
        name: weight if isinstance(weight, torch.Tensor) else weight.dequantize()
        for name, weight in weights.items()
    }
    outputs = task.walk.run("decoder", 0, dense, keep=False)
    error = power = 0.0
    for number in range(len(outputs) - task.num_held_out, len(outputs)):
        is_real = task.walk.batches[number].is_real("decoder")
        target = task.targets[number][is_real].double()
        error += float((outputs[number][is_real].double() - target).square().sum())
        power += float(target.square().sum())
    return error / power


def test_training_brings_a_block_nearer_and_tells_the_truth_about_it(task):
    result = train_block(task, SETTINGS)
    assert result.error_before == pytest.approx(_distance(task, task.weights), rel=1e-4)
    assert result.error_after == pytest.approx(_distance(task, result.weights), rel=1e-4)
    assert result.error_after < 0.9 * result.error_before


def test_the_same_seed_gives_the_same_bits(task):
    one, two = train_block(task, SETTINGS), train_block(task, SETTINGS)
    for name, weight in one.weights.items():
        other = two.weights[name]
        if isinstance(weight, torch.Tensor):
            assert torch.equal(weight, other)
        else:
            assert torch.equal(weight.data, other.data)
            assert torch.equal(weight.scale, other.scale)


def test_a_rate_that_ruins_the_block_leaves_it_as_it_was(task):
    result = train_block(task, BlockSettings(iterations=8, rounding_rate=50.0, scale_rate=50.0))
    assert result.error_after == result.error_before
    for name, weight in task.weights.items():
        if not isinstance(weight, torch.Tensor):
            assert torch.equal(result.weights[name].data, weight.data)
            assert torch.equal(result.weights[name].scale, weight.scale)


def test_little_memory_trains_the_matrices_in_turns(task):
    largest = max(latent.numel() for latent in task.latents.values()) * 20
    settings = BlockSettings(60, 0.02, 2e-3, seed=5, max_trained_bytes=largest)
    result = train_block(task, settings)
    assert result.error_after == pytest.approx(_distance(task, result.weights), rel=1e-4)
    assert result.error_after < 0.9 * result.error_before


def test_a_block_of_floats_has_its_norms_trained_alone(task):
    floats = {
        name: weight if isinstance(weight, torch.Tensor) else weight.dequantize()
        for name, weight in task.weights.items()
    }
    own = BlockTask(task.walk, "decoder", 0, floats, {}, task.targets, task.num_held_out)
    result = train_block(own, SETTINGS)
    assert result.error_after <= result.error_before
    for name, weight in floats.items():
        if weight.dim() == 2:
            assert torch.equal(result.weights[name], weight)
